"""R20: kill -9 of a data step at any moment; a rerun gives byte-identical outputs, nothing twice and nothing missing."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import shard_functions as work
from tenfold.shards.executor import map_shards
from tenfold.shards.journal import NAME

KILLS = 20
SETTINGS = {"version": 1}

# The step as a person's script: it reads the passages from a file and maps them in two processes.
STEP = """
import json, sys
from pathlib import Path
import shard_functions as work
from tenfold.shards.executor import map_shards

if __name__ == "__main__":
    texts = json.loads(Path(sys.argv[1]).read_text())
    names = {text: f"part-{index:03}.txt" for index, text in enumerate(texts)}
    map_shards(work.slow_count, texts, Path(sys.argv[2]), settings={"version": 1}, workers=2, name=names.get)
"""


@pytest.fixture(scope="module")
def passages(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with gzip.open(test_data / "text/tinyshakespeare.txt.gz", "rt") as file:
        texts = [file.read(1500) for _ in range(24)]
    path = tmp_path_factory.mktemp("passages") / "passages.json"
    path.write_text(json.dumps(texts))
    return path


def start(tmp_path: Path, passages: Path, out: Path) -> subprocess.Popen[bytes]:
    script = tmp_path / "step.py"
    script.write_text(STEP)
    tests = str(Path(work.__file__).parent)
    source = str(Path(sys.modules["tenfold"].__file__ or "").parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, source])}
    return subprocess.Popen([sys.executable, script, passages, out], env=environment, stderr=subprocess.PIPE)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.002)


def test_kill_9_at_twenty_moments_leaves_nothing_torn_and_a_rerun_completes_it(passages: Path, tmp_path: Path) -> None:
    texts = json.loads(passages.read_text())
    names = {text: f"part-{index:03}.txt" for index, text in enumerate(texts)}
    whole = {names[text]: text.encode() for text in texts}

    def run(out: Path) -> tuple[int, int]:
        result = map_shards(work.slow_count, texts, out, settings=SETTINGS, workers=2, name=names.__getitem__)
        return result.done, result.skipped

    assert run(tmp_path / "reference") == (24, 0)
    reference = contents(tmp_path / "reference")
    assert reference == {**whole, NAME: reference[NAME]}

    moments, unfinished = random.Random(20), 0
    for kill in range(KILLS):
        out = tmp_path / f"out-{kill}"
        process = start(tmp_path, passages, out)
        wait_for(out / NAME, process)
        # By progress and not by time, so that a busy machine kills as early as a quiet one.
        wait_for(out / f"part-{moments.randrange(len(texts)):03}.txt", process)
        time.sleep(moments.uniform(0.0, 0.05))
        process.kill()
        process.communicate()
        left = contents(out)
        assert all(left[name] == content for name, content in whole.items() if name in left), "a final name held half"
        done, skipped = run(out)
        unfinished += done > 0
        assert done + skipped == 24
        assert contents(out) == reference
    assert unfinished >= KILLS // 2, "most kills must come before the end, or this test shows nothing"


def test_a_worker_does_not_outlive_its_parent(passages: Path, tmp_path: Path) -> None:
    process = start(tmp_path, passages, tmp_path / "out")
    wait_for(tmp_path / "out/part-000.txt", process)
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(children) >= 2
    process.kill()
    process.communicate()  # returns when the last child has closed the pipe it inherited
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline, "a worker is still there"
        time.sleep(0.02)


def test_ctrl_c_stops_quickly_without_half_files_and_the_next_run_goes_on(passages: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(tmp_path, passages, out)
    wait_for(out / "part-003.txt", process)
    stopped = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert time.monotonic() - stopped < 5
    assert process.returncode == -signal.SIGINT
    assert said.count(b"Traceback") == 1, "the script's own, none of a worker's"
    assert not [name for name in contents(out) if name.startswith(".tmp")]
    again = start(tmp_path, passages, out)
    again.communicate()
    assert again.returncode == 0
    assert len(contents(out)) == 25


def test_a_second_process_on_the_folder_is_told_who_holds_it(passages: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = start(tmp_path, passages, out)
    wait_for(out / NAME, first)
    _, said = start(tmp_path, passages, out).communicate()
    assert f"in use by process {first.pid} on ".encode() in said
    first.communicate()
    assert first.returncode == 0
    assert len(contents(out)) == 25

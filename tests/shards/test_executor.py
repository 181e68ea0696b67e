"""map_shards: the same bytes for any executor and number of workers, and nothing lost or done twice after a fault."""

from __future__ import annotations

import functools
import gzip
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shard_functions as work
from tenfold.data import progress
from tenfold.data.lock import held
from tenfold.errors import CheckpointError, LockHeld, MissingExtra, StorageError, TenfoldError, UsageError
from tenfold.shards import executor
from tenfold.shards.executor import FailedShards, map_shards
from tenfold.shards.journal import NAME, make_header

LETTERS = ["a", "b", "c", "d"]


def same(key: str) -> str:
    return key


def contents(out: Path) -> dict[str, bytes]:
    """Every file of the folder, the journal included; the lock file names a process."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}


def numbered(texts: list[str]) -> Callable[[str], str]:
    names = {text: f"part-{index:03}.txt" for index, text in enumerate(texts)}
    return names.__getitem__


@pytest.fixture(scope="module")
def texts(test_data: Path) -> list[str]:
    """Twelve passages of Shakespeare."""
    with gzip.open(test_data / "text/tinyshakespeare.txt.gz", "rt") as file:
        return [file.read(2000) for _ in range(12)]


@pytest.fixture(scope="module")
def reference(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("one") / "out"
    result = map_shards(work.count_words, texts, out, settings={"v": 1}, workers=1, name=numbered(texts))
    assert (result.done, result.skipped, result.retried, result.failed) == (12, 0, 0, 0)
    assert [path.name for path in result.paths] == [f"part-{index:03}.txt" for index in range(12)]
    return contents(out)


def test_three_workers_write_the_bytes_of_one(texts: list[str], reference: dict[str, bytes], tmp_path: Path) -> None:
    map_shards(work.count_words, texts, tmp_path / "out", settings={"v": 1}, workers=3, name=numbered(texts))
    assert contents(tmp_path / "out") == reference
    assert len(reference) == 13


def test_decoded_images_are_the_same_for_one_and_three_workers(test_data: Path, tmp_path: Path) -> None:
    rows = [work.Row(test_data / "vision/imagenette160_val.parquet", index * 97) for index in range(8)]
    found = []
    for workers in (1, 3):
        out = tmp_path / str(workers)
        map_shards(work.thumbnail, rows, out, settings={}, workers=workers, name=lambda row: f"{row.index}.txt")
        found.append(contents(out))
    assert found[0] == found[1]
    assert len({value for name, value in found[0].items() if name != NAME}) == 8


def test_running_again_skips_and_leaves_every_byte(
    texts: list[str], reference: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    map_shards(work.count_words, texts[:5], out, settings={"v": 1}, workers=2, name=numbered(texts))
    result = map_shards(work.count_words, texts, out, settings={"v": 1}, workers=2, name=numbered(texts))
    assert (result.done, result.skipped) == (7, 5)
    assert contents(out) == reference


def test_damaged_shards_are_done_again_and_no_others(tmp_path: Path) -> None:
    out = tmp_path / "out"
    flipped, cut, gone, folder, _ = map_shards(work.slow_count, [*LETTERS, "e"], out, settings={}).paths
    before = contents(out)
    flipped.write_bytes(bytes([flipped.read_bytes()[0] ^ 1]))
    cut.write_bytes(b"")
    gone.unlink()
    folder.unlink()
    folder.mkdir()
    result = map_shards(work.slow_count, [*LETTERS, "e"], out, settings={})
    assert (result.done, result.skipped) == (4, 1)
    assert contents(out) == before


def test_a_changed_item_under_the_same_name_is_done_again(tmp_path: Path) -> None:
    map_shards(work.slow_count, ["old a", "b"], tmp_path, settings={}, name=lambda text: text[-1])
    result = map_shards(work.slow_count, ["new a", "b"], tmp_path, settings={}, name=lambda text: text[-1])
    assert (result.done, result.skipped) == (1, 1)
    assert (tmp_path / "a").read_text() == "new a"


def test_folders_are_shards_too_and_are_replaced_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = map_shards(work.folder_of_words, ["one two three"], out, settings={}, name=lambda _: "deep/words")
    assert sorted(path.name for path in result.paths[0].iterdir()) == ["0.txt", "1.txt", "2.txt"]
    before = contents(out)
    (result.paths[0] / "1.txt").write_text("TWO")
    (result.paths[0] / "9.txt").write_text("extra")
    assert map_shards(work.folder_of_words, ["one two three"], out, settings={}, name=lambda _: "deep/words").done == 1
    assert contents(out) == before


def test_a_failing_item_is_reported_and_the_others_are_kept(tmp_path: Path) -> None:
    with pytest.raises(FailedShards) as raised:
        map_shards(work.fail_on_b, LETTERS, tmp_path, settings={}, workers=2, retries=1)
    assert raised.value.exit_code == 3
    assert "1 of 4 shards" in str(raised.value)
    assert "b: ValueError: this one is broken" in str(raised.value)
    result = raised.value.result
    assert (result.done, result.failed, result.retried) == (3, 1, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "a", "c", "d", NAME]
    assert any("failed" in json.loads(line) for line in (tmp_path / NAME).read_text().splitlines())
    with pytest.raises(FailedShards) as again:
        map_shards(work.fail_on_b, LETTERS, tmp_path, settings={})
    assert again.value.result.skipped == 3


@pytest.mark.parametrize(
    ("function", "said"),
    [(work.write_nothing, "wrote nothing"), (work.exit_early, "SystemExit: 3")],
)
def test_a_function_that_misbehaves_is_a_failed_item(function: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(FailedShards, match=said):
        map_shards(function, ["a"], tmp_path, settings={}, retries=0)


def test_a_usage_error_of_the_function_ends_the_run_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a: side = 7: allowed is a multiple of 8"):
        map_shards(work.refuse, LETTERS, tmp_path, settings={})


def test_a_worker_that_dies_is_a_failed_attempt_of_its_item_alone(tmp_path: Path) -> None:
    names = ["item-a", "item-b", "item-c"]
    rest = iter(names)
    out = tmp_path / "out"
    result = map_shards(work.die_once, [tmp_path] * 3, out, settings={}, workers=2, name=lambda _: next(rest))
    assert (result.done, result.retried) == (3, 1)
    assert sorted(contents(out)) == [*names, NAME]
    assert (out / "item-b").read_text() == "b"


def test_a_worker_killed_in_the_middle_of_an_item_costs_one_attempt(tmp_path: Path) -> None:
    def kill_it() -> None:
        while not (pids := list(tmp_path.glob("pid-*"))):
            time.sleep(0.01)
        (tmp_path / "go").touch()
        os.kill(int(pids[0].name.removeprefix("pid-")), signal.SIGKILL)

    killer = threading.Thread(target=kill_it)
    killer.start()
    result = map_shards(work.report_pid, [tmp_path], tmp_path / "out", settings={}, name=lambda _: "a")
    killer.join()
    assert (result.done, result.retried) == (1, 1)
    with pytest.raises(FailedShards, match="SIGKILL"):
        (tmp_path / "go").unlink()
        for old in tmp_path.glob("pid-*"):
            old.unlink()
        killer = threading.Thread(target=kill_it)
        killer.start()
        map_shards(work.report_pid, [tmp_path], tmp_path / "out2", settings={}, name=lambda _: "a", retries=0)


def test_a_full_disk_stops_the_run_with_4_and_the_next_one_goes_on(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no space left") as raised:
        map_shards(work.fill_disk, LETTERS, tmp_path, settings={})
    assert raised.value.exit_code == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "a", NAME]
    result = map_shards(work.fill_disk, ["a", "c"], tmp_path, settings={})
    assert (result.done, result.skipped) == (1, 1)


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"function": work.slow_count, "settings": {"side": 2, "mode": {"a": 1}}, "threads": 1}
    map_shards(items=["a"], out=tmp_path, **arguments)
    before = contents(tmp_path)
    for change, said in [
        ({"settings": {"side": 4, "mode": {"a": 1}}}, "settings.side was 2, now 4"),
        ({"settings": {"side": 2, "mode": {"a": 1, "b": 2}}}, "settings.mode.b was absent, now 2"),
        ({"threads": 2}, "threads was 1, now 2"),
        ({"function": work.fail_on_b}, 'function was "shard_functions:slow_count", now "shard_functions:fail_on_b"'),
    ]:
        with pytest.raises(UsageError, match="choose another folder") as raised:
            map_shards(items=["a"], out=tmp_path, **{**arguments, **change})
        assert said in str(raised.value)
        assert contents(tmp_path) == before


@pytest.mark.parametrize("cut", [1, 40])
def test_a_torn_last_journal_line_costs_its_shard_alone(cut: int, tmp_path: Path) -> None:
    map_shards(work.slow_count, LETTERS, tmp_path, settings={})
    before, journal = contents(tmp_path), tmp_path / NAME
    journal.write_bytes(journal.read_bytes()[:-cut])
    result = map_shards(work.slow_count, LETTERS, tmp_path, settings={})
    assert (result.done, result.skipped) == (1, 3)
    assert contents(tmp_path) == before


def test_a_journal_line_of_rubbish_costs_its_shard_alone(tmp_path: Path) -> None:
    map_shards(work.slow_count, LETTERS, tmp_path, settings={})
    before, journal = contents(tmp_path), tmp_path / NAME
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], b"\xff\x00{]\n", *lines[2:]]))
    assert map_shards(work.slow_count, LETTERS, tmp_path, settings={}).skipped == 3
    assert contents(tmp_path) == before


def test_a_journal_that_cannot_say_what_made_it_is_refused_with_4(tmp_path: Path) -> None:
    map_shards(work.slow_count, ["a"], tmp_path, settings={})
    journal = tmp_path / NAME
    rest = b"".join(journal.read_bytes().splitlines(keepends=True)[1:])
    for first in (b"rubbish\n", b"[]\n", b'{"format": 99, "hash": "x"}\n'):
        journal.write_bytes(first + rest)
        with pytest.raises(CheckpointError) as raised:
            map_shards(work.slow_count, ["a"], tmp_path, settings={})
        assert raised.value.exit_code == 4
        assert journal.read_bytes() == first + rest


def test_a_header_torn_at_the_very_start_is_a_new_folder(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b'{"format": 1, "ha')
    assert map_shards(work.slow_count, ["a"], tmp_path, settings={}).done == 1


def test_the_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with held(tmp_path / ".lock", "folder"), pytest.raises(LockHeld, match=f"process {os.getpid()} on "):
        map_shards(work.slow_count, ["a"], tmp_path, settings={})


def test_files_of_other_people_are_neither_replaced_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("precious")
    (tmp_path / ".tmp-1-other").write_text("not ours")
    with pytest.raises(UsageError, match="no journal says who made it"):
        map_shards(work.slow_count, ["a"], tmp_path, settings={})
    map_shards(work.slow_count, ["b"], tmp_path, settings={})
    assert (tmp_path / "a").read_text() == "precious"
    assert (tmp_path / ".tmp-1-other").exists()


def test_leftovers_of_dead_runs_are_cleared(tmp_path: Path) -> None:
    map_shards(work.slow_count, ["a"], tmp_path, settings={}, name=lambda _: "deep/a")
    (tmp_path / "deep/.tmp-123-a").write_text("half")
    (tmp_path / f".tmp-123-{NAME}").write_text("half")
    assert map_shards(work.slow_count, ["a"], tmp_path, settings={}, name=lambda _: "deep/a").skipped == 1
    assert sorted(contents(tmp_path)) == ["deep/a", NAME]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"workers": 0}, "workers = 0"),
        ({"threads": 0}, "threads = 0"),
        ({"retries": -1}, "retries = -1"),
        ({"function": lambda item, target: None}, "top level of a module"),
        ({"items": [lambda: None], "name": lambda _: "a"}, "cannot be sent to a worker"),
    ],
)
def test_wrong_arguments_say_what_is_allowed(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"function": work.slow_count, "items": ["a"], "out": tmp_path, "settings": {}}
    with pytest.raises(UsageError, match=re.escape(said)):
        map_shards(**{**arguments, **change})


def test_values_bound_to_the_function_are_settings(tmp_path: Path) -> None:
    assert map_shards(functools.partial(work.repeat, 2), ["a"], tmp_path, settings={}).paths[0].read_text() == "aa"
    with pytest.raises(UsageError, match="bound was"):
        map_shards(functools.partial(work.repeat, 3), ["a"], tmp_path, settings={})


def test_an_unknown_executor_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'ray'"):
        executor.workers_of("rey")


def test_without_ray_the_line_to_type_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r'pip install "tenfold\[cluster\]"'):
        map_shards(work.slow_count, ["a"], tmp_path, settings={}, executor="ray")


@pytest.fixture
def no_python() -> Iterator[None]:
    """Worker processes cannot start while it lasts."""
    multiprocessing.set_executable("/bin/false")
    yield
    multiprocessing.set_executable(sys.executable)


@pytest.mark.usefixtures("no_python")
def test_workers_that_never_start_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(TenfoldError, match="__main__"):
        map_shards(work.slow_count, ["a"], tmp_path, settings={})


def test_nothing_to_do_starts_no_process(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    assert map_shards(work.slow_count, [], tmp_path, settings={}).paths == ()
    map_shards(work.slow_count, ["a"], tmp_path, settings={})
    request.getfixturevalue("no_python")
    assert map_shards(work.slow_count, ["a"], tmp_path, settings={}).skipped == 1


def test_long_work_says_rate_and_time_left_in_plain_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    map_shards(work.slow_count, LETTERS, tmp_path, settings={}, label="passages")
    said = capsys.readouterr()
    assert re.search(r"passages: 2 of 4, [\d.]+/s, 0:0\d left", said.err)
    assert re.search(r"passages: 4 of 4, [\d.]+/s, in 0:0\d\n$", said.err)
    assert said.out == ""


def test_a_folder_started_under_a_former_id_of_the_map_function_goes_on(tmp_path: Path) -> None:
    """A file that moves changes `module:qualname`; folders of the last version must not be refused, nor change their bytes."""
    items = ["a", "b", "c"]
    map_shards(work.draw, items[:2], tmp_path / "out", settings={}, name=same)
    journal = tmp_path / "out" / NAME
    old = "".join(
        line.replace("tests.draw", "elsewhere:draw") for line in journal.read_text().splitlines(keepends=True)
    )
    header = json.loads(old.splitlines()[0])
    made_by = {key: value for key, value in header.items() if key not in ("format", "hash")}
    renamed = json.dumps(make_header(made_by), sort_keys=True)
    journal.write_text("\n".join([renamed, *old.splitlines()[1:]]) + "\n")
    result = map_shards(work.draw, items, tmp_path / "out", settings={}, name=same)
    assert (result.done, result.skipped) == (1, 2)
    assert json.loads(journal.read_text().splitlines()[0])["function"] == "elsewhere:draw"


def test_a_folder_of_a_function_that_was_never_this_one_is_refused(tmp_path: Path) -> None:
    map_shards(work.draw, ["a"], tmp_path / "out", settings={}, name=same)
    with pytest.raises(UsageError, match="function was"):
        map_shards(work.count_words, ["a"], tmp_path / "out", settings={}, name=same)

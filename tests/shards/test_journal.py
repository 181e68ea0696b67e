"""The journal of shards: what is recorded survives a crash, does not depend on the order of work, and names other settings."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tenfold.errors import CheckpointError, StorageError, UsageError
from tenfold.shards.journal import NAME, Entry, Journal, digest, make_header, size

HEADER = make_header({"function": "f", "settings": {"side": 2, "mode": {"a": 1}}})
ENTRIES = [Entry(name, f"item {name}", number, name * 64) for number, name in enumerate("abc")]


def finished(out: Path, entries: list[Entry], names: list[str] | None = None) -> bytes:
    journal = Journal.open(out, HEADER)
    for entry in entries:
        journal.add(entry)
    journal.close(names)
    return (out / NAME).read_bytes()


def test_the_bytes_do_not_depend_on_the_order_of_the_work(tmp_path: Path) -> None:
    found = set()
    for number, order in enumerate(itertools.permutations(ENTRIES)):
        (tmp_path / str(number)).mkdir()
        found.add(finished(tmp_path / str(number), list(order), ["a", "b", "c"]))
    assert len(found) == 1
    lines = [json.loads(line) for line in found.pop().splitlines()]
    assert lines[0] == HEADER
    assert [Entry(**line) for line in lines[1:]] == ENTRIES


def test_what_was_recorded_is_there_when_it_is_opened_again_and_the_last_record_counts(tmp_path: Path) -> None:
    newer = Entry("b", "item b, changed", 7, "f" * 64)
    finished(tmp_path, [*ENTRIES, newer])
    journal = Journal.open(tmp_path, HEADER)
    assert [journal.finished(name) for name in "abcd"] == [ENTRIES[0], newer, ENTRIES[2], None]
    journal.failed("d", "it is broken")
    journal.close()
    assert Journal.open(tmp_path, HEADER).finished("d") is None
    assert json.loads((tmp_path / NAME).read_text().splitlines()[-1]) == {"name": "d", "failed": "it is broken"}


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_line_torn_by_a_crash_is_cut_off_and_written_over(tmp_path: Path, cut: int) -> None:
    whole = finished(tmp_path, ENTRIES)
    (tmp_path / NAME).write_bytes(whole[:-cut])
    journal = Journal.open(tmp_path, HEADER)
    assert [journal.finished(entry.name) for entry in ENTRIES] == [*ENTRIES[:2], None]
    journal.add(ENTRIES[2])
    journal.close()
    assert (tmp_path / NAME).read_bytes() == whole


def test_every_setting_that_differs_is_named(tmp_path: Path) -> None:
    finished(tmp_path, [])
    for made_by, said in (
        ({"function": "f", "settings": {"side": 4, "mode": {"a": 1}}}, "settings.side was 2, now 4"),
        (
            {"function": "g", "settings": {"side": 2, "mode": {}}},
            r'function was "f", now "g"; settings.mode.a was 1, now',
        ),
    ):
        with pytest.raises(UsageError, match=said):
            Journal.open(tmp_path, make_header(made_by))


def test_a_folder_of_a_former_header_goes_on_under_it(tmp_path: Path) -> None:
    finished(tmp_path, ENTRIES[:1])
    journal = Journal.open(tmp_path, make_header({"function": "moved"}), formerly=[HEADER])
    assert journal.header == HEADER
    assert journal.finished("a") == ENTRIES[0]


@pytest.mark.parametrize("first", [b"rubbish\n", b"[]\n", b"{}\n", b'{"format": 99, "hash": "x"}\n'])
def test_a_first_line_that_is_no_header_is_refused_and_left(tmp_path: Path, first: bytes) -> None:
    (tmp_path / NAME).write_bytes(first)
    with pytest.raises(CheckpointError, match=r"line 1 cannot be read|has format 99"):
        Journal.open(tmp_path, HEADER)
    assert (tmp_path / NAME).read_bytes() == first


def test_a_header_has_one_hash_for_any_order_of_its_fields() -> None:
    def header(**made_by: Any) -> dict[str, Any]:
        return make_header(made_by)

    assert header(a=1, b={"c": 2, "d": 3}) == header(b={"d": 3, "c": 2}, a=1)
    assert header(a=1)["hash"] != header(a=2)["hash"]


def test_an_entry_holds_only_the_bytes_that_were_journalled(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_bytes(b"12345")
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/a").write_bytes(b"xy")
    (folder / "b").write_bytes(b"z")
    entries = {path: Entry(path.name, "", size(path), digest(path)) for path in (file, folder)}
    assert (entries[file].size, entries[folder].size) == (5, 3)
    assert all(entry.holds(path) for path, entry in entries.items())
    file.write_bytes(b"12346")
    (folder / "b").rename(folder / "c")  # the same bytes under another name
    assert not any(entry.holds(path) for path, entry in entries.items())
    assert not entries[file].holds(tmp_path / "absent")


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="could not write"):
        Journal.open(tmp_path / "absent", HEADER)

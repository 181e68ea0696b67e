"""A final name holds the old content or the new content, whatever happens in between."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tenfold.data.atomic import aside, write_atomic
from tenfold.errors import StorageError


def test_content_is_replaced_whole_and_nothing_is_left_beside(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b.txt", b"one")
    write_atomic(tmp_path / "a" / "b.txt", b"two")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"two"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_a_full_disk_keeps_the_old_file_and_says_so(tmp_path: Path) -> None:
    write_atomic(tmp_path / "b.txt", b"one")
    with pytest.raises(StorageError, match="no space left"), aside(tmp_path / "b.txt") as temporary:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "b.txt").read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["b.txt"]


def test_a_folder_appears_only_when_complete(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), aside(tmp_path / "out") as temporary:
        (temporary / "deep").mkdir(parents=True)
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []
    with aside(tmp_path / "out") as temporary:
        (temporary / "deep").mkdir(parents=True)
        (temporary / "deep" / "x").write_text("1")
    assert (tmp_path / "out" / "deep" / "x").read_text() == "1"


def test_an_unwritable_target_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not write"):
        write_atomic(tmp_path / "file" / "below", b"x")


@pytest.mark.parametrize("length", [240, 255])
def test_a_name_as_long_as_the_disk_takes_is_written(tmp_path: Path, length: int) -> None:
    write_atomic(tmp_path / ("x" * length), b"data")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"data"]


def test_a_name_that_is_too_long_is_an_error_of_storage(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        write_atomic(tmp_path / ("x" * 256), b"data")

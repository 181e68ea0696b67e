"""Atomic writes: a final name never holds half a file, because it is written aside, flushed to disk and renamed.

    write_atomic(path, data)                 bytes to a file
    with aside(path) as temporary: ...       any writer to a file or folder; renamed when the block ends well

A full disk or a missing permission becomes StorageError; what was there before is intact and nothing is left behind.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tenfold.errors import storage_error

LONGEST = 255  # bytes of a file name


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces `path` by `data`, or leaves it as it was."""
    with aside(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` for a file or folder, renamed to `path` after the block.

    The name carries the process id, so two processes never share one. A folder can only replace a folder that does not
    exist yet (a rename cannot swap two full folders): remove or rename the old one first.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    if len(os.fsencode(temporary.name)) > LONGEST:
        temporary = path.with_name(f".tmp-{os.getpid()}-{hashlib.sha256(os.fsencode(path.name)).hexdigest()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        _remove(temporary)
        raise storage_error(path, error) from error
    except BaseException:
        _remove(temporary)
        raise


def sync(path: Path) -> None:
    """Flushes a file, or every file below a folder and the folders themselves, to disk."""
    if path.is_dir():
        for child in path.iterdir():
            sync(child)
        sync_folder(path)
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Makes a rename inside `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    with suppress(OSError):  # never made, its folder is not one, or no name that this disk takes
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()

"""One process at a time on a run folder or a cache: the second is told who holds it.

    with held(folder / ".lock", "run folder"):
        ...

The kernel drops the lock when its holder dies, however it dies, so a stale file never blocks anybody.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tenfold.errors import LockHeld, storage_error


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Holds the lock file `path` during the block. Raises LockHeld, with the holder's process and host, at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
            raise LockHeld(
                f"the {what} {path.parent} is in use by {holder}. Wait for it, stop it, or choose another folder."
            ) from None
        os.ftruncate(handle, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}, since {since}\n".encode(), 0)
        yield
    finally:
        os.close(handle)

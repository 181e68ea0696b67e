"""One attempt at one shard, in a worker process: the part of `map_shards` that is the same on every executor.

The worker calls the user's function with a temporary path, hashes what it wrote, flushes it and renames it. Errors come
back as words, because an exception of a third-party package may not survive the way between processes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tenfold.data.atomic import aside
from tenfold.errors import DataError, StorageError, UsageError, storage_error
from tenfold.shards.journal import digest, size

Function = Callable[[Any, Path], object]
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Job:
    """What goes to a worker: the shard's name, its pickled item, its final path and the seed of global generators."""

    name: str
    item: bytes
    final: Path
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What comes back. `failed` counts as an attempt of the item; `usage` and `storage` end the whole run."""

    name: str
    kind: Literal["done", "failed", "usage", "storage"]
    reason: str = ""
    size: int = 0
    sha256: str = ""


def attempt(function: Function, job: Job, threads: int) -> Outcome:
    """Runs `function(item, temporary)` and moves its output to `job.final`. Never raises."""
    limit_threads(threads)
    seed_generators(job.seed)
    try:
        with aside(job.final) as temporary:
            try:
                function(pickle.loads(job.item), temporary)
            except BaseException as error:
                raise _Failed from error  # `aside` would take an unreadable input for an unwritable output
            if not temporary.exists():
                raise _Failed from DataError("the function wrote nothing at the path that it was given")
            done = Outcome(job.name, "done", size=size(temporary), sha256=digest(temporary))
            _make_way(job.final, temporary)
    except _Failed as failed:
        return _failure(job, failed.__cause__ or failed)
    except StorageError as error:
        return Outcome(job.name, "storage", str(error))
    return done


class _Failed(Exception):
    """Carries the function's own error out of `aside`."""


def _failure(job: Job, error: BaseException) -> Outcome:
    if isinstance(error, StorageError):
        return Outcome(job.name, "storage", str(error))
    if _disk_is_full(error):
        full = error if isinstance(error, OSError) else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return Outcome(job.name, "storage", str(storage_error(job.final, full)))
    if isinstance(error, UsageError):  # a wrong setting or a missing package is the same for every item
        return Outcome(job.name, "usage", str(error))
    return Outcome(job.name, "failed", f"{type(error).__name__}: {error}")


def _disk_is_full(error: BaseException | None) -> bool:
    """Looks through the chain of causes, and at words, for libraries that wrap the system's error in their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _make_way(final: Path, temporary: Path) -> None:
    """Removes what a rename cannot replace: a folder, or a file where a folder will stand."""
    if final.is_dir() and not final.is_symlink():
        shutil.rmtree(final)
    elif temporary.is_dir() and final.exists():
        final.unlink()


def thread_environment(threads: int) -> dict[str, str]:
    """The environment of a worker: one thread budget for every library, and one order of string sets."""
    names = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM", "RAYON")
    limits = {f"{name}_NUM_THREADS": str(threads) for name in names}
    return {**limits, "OPENCV_FOR_THREADS_NUM": str(threads), "PYTHONHASHSEED": "0"}


def limit_threads(threads: int) -> None:
    """The same for libraries that are imported already; those that come later read the environment."""
    torch, cv2 = sys.modules.get("torch"), sys.modules.get("cv2")
    if torch is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    if cv2 is not None:
        cv2.setNumThreads(threads)


def seed_generators(seed: int) -> None:
    """Global generators start from the item, so that a function that draws from them does not depend on its worker."""
    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def item_seed(settings_hash: str, name: str) -> int:
    """63 bits from the settings and the item's name."""
    return int.from_bytes(hashlib.sha256(f"{settings_hash}\0{name}".encode()).digest()[:8]) >> 1

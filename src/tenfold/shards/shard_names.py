"""File names of shards: which are allowed, what in a folder is ours, and the temporaries that dead workers leave."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import TypeVar

from tenfold.errors import UsageError
from tenfold.shards.journal import NAME

Item = TypeVar("Item")
LONGEST = 200  # bytes of a file name, which leaves room for the temporary's prefix
TEMPORARY = re.compile(r"\.tmp-\d+-(.+)", re.DOTALL)  # what data/atomic.py writes


def check_names(items: Iterable[Item], name: Callable[[Item], str]) -> dict[str, Item]:
    """Items by name, in order. Refuses names that clash or that would leave the folder."""
    named: dict[str, Item] = {}
    folders: set[str] = set()
    for item in items:
        key = name(item)
        if not isinstance(key, str) or not key or str(PurePosixPath(key)) != key or key in (".", NAME):
            raise UsageError(f"shard name {key!r}: allowed is a relative file name such as 'part-0.parquet'.")
        parts = PurePosixPath(key).parts
        if any(part.startswith(("/", ".")) or len(part.encode()) > LONGEST or "\0" in part for part in parts):
            raise UsageError(
                f"shard name {key!r}: no part may start with a dot or a slash, hold NUL, or exceed {LONGEST} bytes."
            )
        if key in named:
            raise UsageError(f"two items have the name {key!r}. Give `name=` something that tells them apart.")
        named[key] = item
        folders.update(str(parent) for parent in PurePosixPath(key).parents)
    if clash := folders & named.keys():
        raise UsageError(f"the shard name {min(clash)!r} is also the folder of another shard.")
    return named


def refuse_strangers(out: Path, named: Iterable[str]) -> None:
    """Without a journal, nothing in `out` is ours to replace."""
    for name in named:
        if (out / name).exists():
            raise UsageError(
                f"{out / name} exists and no journal says who made it. Choose another folder, or move it away."
            )


def clear_temporaries(out: Path, named: Iterable[str]) -> None:
    """Removes what dead workers left behind: temporaries of our own names, never anything else."""
    ours = {out / name for name in named} | {out / NAME}
    for folder in {path.parent for path in ours}:
        if not folder.is_dir():
            continue
        for path in folder.iterdir():
            match = TEMPORARY.fullmatch(path.name)
            if match and folder / match.group(1) in ours:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

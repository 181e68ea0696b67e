"""The journal of a folder of shards: which are finished, under which settings, and what their bytes were.

    journal = Journal.open(out, header)         refuses a folder that other settings made
    journal.finished("a.txt")                   its Entry, or None
    journal.add(Entry(...)); journal.failed("b.txt", "reason")
    journal.close(names)                        rewritten in the order of `names`: the same bytes for any order of work

Append-only JSON lines, each flushed to disk before the next shard counts as done. A last line torn by a crash is cut off;
a line that does not read makes its shard be done again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.data.atomic import write_atomic
from tenfold.errors import CheckpointError, UsageError, storage_error

NAME = "journal.jsonl"
FORMAT = 1
ABSENT = object()


@dataclass(frozen=True)
class Entry:
    """A finished shard: its name, the fingerprint of its item, its size in bytes and the SHA-256 of its content."""

    name: str
    item: str
    size: int
    sha256: str

    def holds(self, path: Path) -> bool:
        """Whether `path` is what was journalled, byte for byte (the size is compared first)."""
        try:
            return size(path) == self.size and digest(path) == self.sha256
        except OSError:
            return False


class Journal:
    """Reads and appends. The folder's lock must be held. `header` says what made the shards (see `make_header`)."""

    def __init__(self, out: Path, header: dict[str, Any], lines: Iterable[dict[str, Any]]) -> None:
        self.path, self.header = out / NAME, header
        self._entries: dict[str, Entry] = {}
        for line in lines:
            if {"name", "item", "size", "sha256"} <= line.keys():
                entry = Entry(line["name"], line["item"], line["size"], line["sha256"])
                self._entries[entry.name] = entry
        self._file: int | None = None

    @classmethod
    def open(cls, out: Path, header: dict[str, Any], formerly: Iterable[dict[str, Any]] = ()) -> Journal:
        """Opens or starts the journal of `out`. A folder that was started under one of the headers `formerly` continues
        under it: its seeds derive from that header's hash.

        Raises UsageError when other settings made the folder (naming each difference) and CheckpointError when its
        first line cannot be read.
        """
        path = out / NAME
        try:
            lines = _read(path)
            if lines:
                header = next((old for old in formerly if old["hash"] == lines[0]["hash"]), header)
                _compare(path, lines[0], header)
            journal = cls(out, header, lines[1:])
            journal._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            if not lines:
                journal._append(header)
        except OSError as error:
            raise storage_error(path, error) from error
        return journal

    def finished(self, name: str) -> Entry | None:
        return self._entries.get(name)

    def add(self, entry: Entry) -> None:
        """Records a finished shard; when this returns, a crash cannot lose it."""
        self._append(entry.__dict__)
        self._entries[entry.name] = entry

    def failed(self, name: str, reason: str) -> None:
        """Records why an item was given up; the next run tries it again."""
        self._append({"name": name, "failed": reason})

    def close(self, names: Iterable[str] | None = None) -> None:
        """Closes the file. With `names`, all of them finished, rewrites it: those first, in their order, then what
        earlier runs finished, by name; what it holds then does not depend on the order in which shards were done."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if names is None:
            return
        order = dict.fromkeys([*names, *sorted(self._entries)])
        lines = [self.header, *(self._entries[name].__dict__ for name in order)]
        content = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines).encode()
        if content != self.path.read_bytes():
            write_atomic(self.path, content)

    def _append(self, line: Mapping[str, Any]) -> None:
        assert self._file is not None, "the journal is closed"
        try:
            data = json.dumps(line, sort_keys=True).encode() + b"\n"
            while data:  # a disk that fills up may take a part: the next write then says why
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            raise storage_error(self.path, error) from error


def make_header(made_by: dict[str, Any]) -> dict[str, Any]:
    """The first line: everything that the shards' bytes depend on besides their items, as JSON values, and its hash."""
    canonical = json.dumps(made_by, sort_keys=True).encode()
    return {"format": FORMAT, "hash": hashlib.sha256(canonical).hexdigest(), **json.loads(canonical)}


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return sum(file.stat().st_size for file in _files(path))


def digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, over the sorted names and digests of its files."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    for file in _files(path):
        total.update(f"{file.relative_to(path).as_posix()}\0{digest(file)}\n".encode())
    return total.hexdigest()


def _files(path: Path) -> list[Path]:
    return sorted(child for child in path.rglob("*") if child.is_file()) if path.is_dir() else [path]


def _read(path: Path) -> list[dict[str, Any]]:
    """The complete lines. The first must be a header; others that do not read are left out."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):  # torn by a crash
        os.truncate(path, whole)
    lines = [_parse(line) for line in data[:whole].splitlines()]
    if lines and (lines[0] is None or "hash" not in lines[0]):
        raise CheckpointError(
            f"{path} line 1 cannot be read, so nothing says what made this folder. Choose another one."
        )
    if lines and lines[0] is not None and lines[0].get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {lines[0].get('format')!r}; this tenfold reads {FORMAT}. Use the version that wrote it, "
            f"or choose another folder."
        )
    return [line for line in lines if line is not None]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _compare(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    if before["hash"] == now["hash"]:
        return
    old, new = _flat(before), _flat(now)
    changed = [
        f"{name} was {_show(old.get(name, ABSENT))}, now {_show(new.get(name, ABSENT))}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name, ABSENT) != new.get(name, ABSENT)
    ]
    raise UsageError(
        f"{path.parent} holds shards of other settings: {'; '.join(changed) or 'the journal was edited'}. Go back to those "
        f"settings, choose another folder, or delete this one to start again."
    )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Dotted names of the leaves; the parts that vary (format and hash) are left out at the top."""
    if not isinstance(value, dict):
        return {name: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if name or key not in ("format", "hash"):
            flat |= _flat(inner, f"{name}.{key}" if name else key)
    return flat


def _show(value: Any) -> str:
    return "absent" if value is ABSENT else json.dumps(value)

"""Images in parquet, as Hugging Face and many exports write them: one row per image, encoded bytes, a label.

    source = ParquetSource([Path("train-00000.parquet"), Path("train-00001.parquet")])

Columns: `image` or `img` (bytes, or a struct with `bytes`), and `label` (numbers or names; absent is fine). Class names
come from the schema's metadata: `classes` (separated by commas, or a JSON list) or `huggingface` (a ClassLabel feature).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.data.folders import FileState, file_state
from tenfold.data.readers import read_image, read_json
from tenfold.data.sample import Sample, by_name
from tenfold.errors import DataError, MissingExtra

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels")
MAX_HELD = 2**30  # encoded bytes kept between reads; more than that is read again, a row group at a time


class ParquetSource:
    """The rows of one or several files with the same columns. Raises DataError when they are not images."""

    def __init__(self, paths: Sequence[Path]) -> None:
        pq = _pyarrow()
        self._paths = list(paths)
        self._groups: list[tuple[int, int]] = []  # (file, row group)
        firsts = []  # row of the source at which each file begins
        starts, labels = [0], []
        for number, path in enumerate(self._paths):
            with _reading(path):
                file = pq.ParquetFile(path)
                self._column = _column(file.schema_arrow, path)
                firsts.append(starts[-1])
                label = next((name for name in LABEL_COLUMNS if name in file.schema_arrow.names), None)
                labels.append(file.read([label]).column(0).to_pylist() if label else None)
                for group in range(file.num_row_groups):
                    self._groups.append((number, group))
                    starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
                if number == 0:
                    names = _class_names(file.schema_arrow, label, path)
        self._starts, self._firsts = np.array(starts), firsts
        if len(self) == 0:
            raise DataError(f"{self._paths[0]} has no rows.")
        self.labels, self.classes = self._label(labels, names)
        self._held: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = int(np.searchsorted(self._starts, index, "right")) - 1
        row = index - int(self._starts[group])
        file = self._groups[group][0]
        name = f"{self._paths[file]}, row {index - self._firsts[file]}"
        value = self._group(group)[row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            raise DataError(f"{name} has no image bytes.")
        return Sample(read_image(data, name), None if self.labels is None else int(self.labels[index]), name)

    def file_states(self, start: int, stop: int) -> list[tuple[FileState, int, int]]:
        """Of each file that has some of these rows, and which of its rows they are."""
        ends = [*self._firsts[1:], len(self)]
        rows = [(max(start, first) - first, min(stop, end) - first) for first, end in zip(self._firsts, ends)]
        return [(file_state(path), *part) for path, part in zip(self._paths, rows) if part[0] < part[1]]

    def __getstate__(self) -> dict[str, Any]:
        """For a worker process that is not forked: what is held is read again there."""
        return {**self.__dict__, "_lock": None, "_held": OrderedDict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _group(self, group: int) -> Any:
        with self._lock:
            if group not in self._held:
                number, part = self._groups[group]
                with _reading(self._paths[number]):
                    file = _pyarrow().ParquetFile(self._paths[number])
                    self._held[group] = file.read_row_group(part, [self._column]).column(0)
                while len(self._held) > 1 and sum(column.nbytes for column in self._held.values()) > MAX_HELD:
                    self._held.popitem(last=False)
            self._held.move_to_end(group)
            return self._held[group]

    def _label(
        self, files: list[list[Any] | None], names: tuple[str, ...]
    ) -> tuple[np.ndarray | None, tuple[str, ...]]:
        values: list[Any] = []
        for path, part in zip(self._paths, files):
            if part is None:
                return None, ()
            if any(value is None for value in part):
                raise DataError(f"{path} has rows without a label.")
            values += part
        if all(isinstance(value, str) for value in values):
            return by_name(values)
        if all(value == -1 for value in values):
            return None, ()  # how Hugging Face writes a test set without labels
        labels = np.array(values)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise DataError(f"{self._paths[0]}: labels are {type(values[0]).__name__}; numbers or names are read.")
        names = names or tuple(str(i) for i in range(int(labels.max()) + 1))
        if labels.min() < 0 or labels.max() >= len(names):
            raise DataError(
                f"{self._paths[0]}: labels run from {labels.min()} to {labels.max()}, and there are {len(names)} classes."
            )
        return labels.astype(np.int64), names


def parquet_rows(
    path: Path, needed: Sequence[str], optional: Sequence[str] = ()
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Whole columns of a file that memory holds (at most MAX_HELD bytes), and the schema's metadata as text.

    Raises DataError, naming the file and what it has, when a needed column is absent.
    """
    pq = _pyarrow()
    if not path.is_file():
        raise DataError(f"{path} does not exist, or is not a parquet file.")
    with _reading(path):
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        missing = [name for name in needed if name not in schema.names]
        if missing:
            raise DataError(f"{path} has no column {', '.join(missing)}; its columns are {', '.join(schema.names)}.")
        wanted = [*needed, *(name for name in optional if name in schema.names)]
        if sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)) > MAX_HELD:
            raise DataError(f"{path} is larger than the {MAX_HELD:,} bytes that are read at once; split it.")
        table = file.read(wanted)
    metadata = {k.decode(): v.decode("utf-8", "replace") for k, v in (schema.metadata or {}).items()}
    return {name: table.column(name).to_pylist() for name in wanted}, metadata


def parquet_column(path: Path, names: Sequence[str]) -> tuple[str, list[Any]] | None:
    """The name and values of the first of these columns that the file has; None when it has none, or is not parquet."""
    if path.suffix.lower() not in (".parquet", ".pq"):
        return None
    with _reading(path):
        file = _pyarrow().ParquetFile(path)
        found = next((name for name in names if name in file.schema_arrow.names), None)
        return None if found is None else (found, file.read([found]).column(0).to_pylist())


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("pyarrow", "vision", "it reads parquet") from error
    return pq


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what pyarrow raises for a damaged file into a DataError that names it."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise DataError(f"{path} is not a parquet file that can be read: {error}.") from error


def _column(schema: Any, path: Path) -> str:
    name = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    if name is None:
        raise DataError(
            f"{path} has no column {' or '.join(IMAGE_COLUMNS)}; its columns are {', '.join(schema.names)}."
        )
    kind = str(schema.field(name).type)
    if not (kind in ("binary", "large_binary") or (kind.startswith("struct<") and "bytes: binary" in kind)):
        raise DataError(f"{path}: column {name} is {kind}; encoded bytes, or a struct with `bytes`, are read.")
    return name


def _class_names(schema: Any, label: str | None, path: Path) -> tuple[str, ...]:
    metadata = schema.metadata or {}
    if b"classes" in metadata:
        text = metadata[b"classes"].decode()
        names = read_json(text.encode(), f"{path}: classes") if text.startswith("[") else text.split(",")
        return tuple(str(name) for name in names)
    if b"huggingface" in metadata and label:
        features = read_json(metadata[b"huggingface"], f"{path}: huggingface").get("info", {}).get("features", {})
        return tuple(str(name) for name in features.get(label, {}).get("names") or ())
    return ()

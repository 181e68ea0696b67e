"""Labelled images from what users have: a parquet file, a folder, a tar; and `InMemory`, which decodes them once.

    source = open_source("imagenette.parquet")      len(source), source[3].image, source.labels, source.classes
    kept = InMemory(source, side=64)                kept.images uint8 (n, 64, 64, 3)

A source is read at random places from several threads. An image that cannot be read is a DataError of that row alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from tenfold.data.archives import compressed, scan_tar
from tenfold.data.folders import FileState, FolderSource, file_state, is_image
from tenfold.data.parquet import ParquetSource
from tenfold.data.progress import track
from tenfold.data.readers import MAX_IMAGE_BYTES, SUFFIXES, read_image, read_json
from tenfold.data.sample import Sample, by_name
from tenfold.errors import DataError

MAX_HELD = 2 * 2**30  # bytes of a compressed tar's images that are kept in memory
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
THUMBNAIL = 16
NAMED = 5  # unreadable files that a message names


@runtime_checkable
class Source(Protocol):
    """Images that can be read at random. `labels` index `classes`; both are empty-handed (None, ()) without labels."""

    @property
    def labels(self) -> np.ndarray | None: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...


def content_id(source: Source, start: int, stop: int) -> str:
    """SHA-256 of which files images `start` to `stop` of an opened source are: names, sizes, and times of their last change.
    Whatever is renamed, added before them, deleted or replaced changes it."""
    states = source.file_states(start, stop)  # type: ignore[attr-defined]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


def open_source(path: Path | str) -> Source:
    """A parquet file (or a folder of them), a tar, or a folder of images, told apart by what stands there.

    Raises DataError when nothing is there, or nothing in it is an image.
    """
    path = Path(path)
    if path.is_dir():
        shards = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))
        return ParquetSource(shards) if shards else FolderSource(path)
    if not path.exists():
        raise DataError(f"{path} does not exist. Give a parquet file, a tar, or a folder of images.")
    if path.suffix.lower() in (".parquet", ".pq"):
        return ParquetSource([path])
    if path.name.lower().endswith(TAR_ENDINGS):
        return TarSource(path)
    raise DataError(f"{path} is neither a folder, a .parquet file nor a tar ({', '.join(TAR_ENDINGS)}).")


class TarSource:
    """A tar whose images are labelled by a `.cls` or `.json` beside them (webdataset), or by the folder they lie in.

    A `.cls` is a number or a class name; a `.json` has it under `label`, `cls` or `class`. Images of one folder alone
    have no labels. A plain tar is read in place; a compressed one is kept in memory, up to 2 GiB of images.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._members: list[tuple[str, int, int]] = []
        self._held: list[bytes] | None = [] if compressed(path) else None
        marks: dict[str, int | str] = {}
        held = 0
        for member in scan_tar(path):
            name = member.name
            if is_image(name) and member.size <= MAX_IMAGE_BYTES:
                self._members.append((name, member.offset, member.size))
                if self._held is not None:
                    held += member.size
                    if held > MAX_HELD:
                        raise DataError(f"{path} has more than {MAX_HELD:,} bytes of images: decompress it first.")
                    self._held.append(member.read())
            elif name.endswith((".cls", ".json")) and member.size <= 2**20:
                mark = _mark(member.read(), f"{path}: {name}")
                if mark is not None:
                    marks[_key(name)] = mark
        if not self._members:
            raise DataError(f"{path} holds no images ({', '.join(SUFFIXES)}).")
        self.labels, self.classes = self._label(marks)

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, index: int) -> Sample:
        name, offset, size = self._members[index]
        if self._held is not None:
            data = self._held[index]
        else:
            with self._path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        label = None if self.labels is None else int(self.labels[index])
        return Sample(read_image(data, f"{self._path}: {name}"), label, name)

    def file_states(self, start: int, stop: int) -> list[FileState]:
        """Of the archive: its images change with it."""
        return [file_state(self._path)]

    def _label(self, marks: dict[str, int | str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
        names = [name for name, _, _ in self._members]
        if not marks:
            folders = [PurePosixPath(name).parent.name for name in names]
            return by_name(folders) if len(set(folders)) > 1 else (None, ())
        missing = [name for name in names if _key(name) not in marks]
        if missing:
            raise DataError(
                f"{self._path}: {len(missing)} images have no .cls or .json beside them, first {missing[0]}."
            )
        found = [marks[_key(name)] for name in names]
        numbers = [mark for mark in found if isinstance(mark, int)]
        if len(numbers) == len(found):
            return np.array(numbers, np.int64), tuple(str(i) for i in range(max(numbers) + 1))
        return by_name([str(mark) for mark in found])


class InMemory:
    """A source decoded once: `images` uint8 (n, side, side, 3), squashed to a square by antialiased bicubic resize.

    `thumbnails` uint8 (n, 16, 16, 3) are means of the original images, for the raw-pixel baseline. An image that cannot be
    read is replaced, label and all, by the next one that can, and named in `replaced`; when more than `error_rate` of
    all are unreadable, DataError names them. It is a source itself. Decodes on every core of this process.
    """

    def __init__(self, source: Source, side: int, error_rate: float = 0.01) -> None:
        total = len(source)
        _check_memory(total, side)
        self.images = np.empty((total, side, side, 3), np.uint8)
        self.thumbnails = np.empty((total, THUMBNAIL, THUMBNAIL, 3), np.uint8)
        self.classes = source.classes
        self.labels = None if source.labels is None else source.labels.astype(np.int64)
        self.replaced: list[str] = []
        self._names = [""] * total
        bad: list[int] = []

        def keep(index: int) -> str | None:
            try:
                sample = source[index]
            except DataError as error:
                return str(error)
            pixels = torch.from_numpy(sample.image)
            self.images[index] = resized(pixels, side).numpy()
            self.thumbnails[index] = thumbnail(pixels).numpy()
            self._names[index] = sample.name
            return None

        for index, failure in enumerate(track(_on_all_cores(keep, range(total)), "decoding", total)):
            if failure is not None:
                bad.append(index)
                self.replaced.append(failure)
                if len(bad) > error_rate * total:
                    raise too_many_unreadable(self.replaced, total, error_rate)
        self._replace(bad)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.images[index], None if self.labels is None else int(self.labels[index]), self._names[index])

    def _replace(self, bad: list[int]) -> None:
        good = np.setdiff1d(np.arange(len(self)), bad)
        for index in bad:
            other = good[np.searchsorted(good, index) % len(good)]
            self.images[index], self.thumbnails[index] = self.images[other], self.thumbnails[other]
            self._names[index] = self._names[other]
            if self.labels is not None:
                self.labels[index] = self.labels[other]


def resized(image: UInt8[Tensor, "h w 3"], side: int) -> UInt8[Tensor, "side side 3"]:
    """Squashed to a square: bicubic, antialiased, in grey levels."""
    if image.shape[:2] == (side, side):
        return image
    planes = F.interpolate(image.permute(2, 0, 1)[None], size=(side, side), mode="bicubic", antialias=True)
    return planes[0].permute(1, 2, 0)


def thumbnail(image: UInt8[Tensor, "h w 3"]) -> UInt8[Tensor, "16 16 3"]:
    """Means over 16 x 16 cells of the whole image."""
    means = F.adaptive_avg_pool2d(image.permute(2, 0, 1).float(), THUMBNAIL)
    return means.round_().to(torch.uint8).permute(1, 2, 0)


def too_many_unreadable(failures: Sequence[str], total: int, error_rate: float) -> DataError:
    """What a loader says when it stops skipping."""
    more = f" and {len(failures) - NAMED} more" if len(failures) > NAMED else ""
    return DataError(
        f"{len(failures)} of {total:,} images cannot be read, more than the {error_rate:.1%} that are skipped: "
        + " ".join(failures[:NAMED])
        + more
    )


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _on_all_cores(work: Callable[[int], str | None], items: Sequence[int]) -> Iterator[str | None]:
    with _one_torch_thread(), ThreadPoolExecutor(cores()) as pool:
        try:
            yield from pool.map(work, items)
        finally:
            pool.shutdown(cancel_futures=True)  # stopped early: what waits is not decoded


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Threads that decode are as many as cores; each resize must not start as many again."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check_memory(total: int, side: int) -> None:
    if total == 0:
        raise DataError("the source holds no images.")
    needed, memory = total * side * side * 3, Path("/proc/meminfo")
    if not memory.exists():
        return
    free = next(int(line.split()[1]) * 1024 for line in memory.open() if line.startswith("MemAvailable"))
    if needed > 0.9 * free:
        raise DataError(
            f"{total:,} images at {side} x {side} take {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free: "
            f"choose a smaller side or fewer images."
        )


def _key(name: str) -> str:
    """What the members of one sample share: the name up to the first dot of its last part."""
    path = PurePosixPath(name)
    return str(path.parent / path.name.split(".")[0])


def _mark(data: bytes, name: str) -> int | str | None:
    """The label in a `.cls` or `.json`, or None when the JSON has none."""
    if name.endswith(".cls"):
        text = data.decode(errors="replace").strip()
        return int(text) if text.isdecimal() else text
    value = read_json(data, name)
    for field in ("label", "cls", "class"):
        if isinstance(value, dict) and isinstance(value.get(field), (int, str)):
            return value[field]
    return None

"""Image folders, walked in one way by every verb: hidden files are left out, links are followed, skipped files are counted.

    walk = walk_images(Path("photos"))        walk.files, walk.skipped (Counter of endings)
    source = FolderSource(Path("photos"))     one subfolder per class, or images without labels

A link to a folder is followed once in each entry of the folder that is walked, and never into a folder that it lies in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from tenfold.data.readers import SUFFIXES, read_image
from tenfold.data.sample import Sample
from tenfold.errors import DataError

FileState = tuple[str, int, int, int]
CLOSED = "folders that cannot be opened"


@dataclass(frozen=True)
class Walk:
    """`top`: the images that lie in the folder itself. `below`: those of each entry that is a folder, searched to the bottom.
    `skipped`: how many files have which ending that is not read, hidden ones left out."""

    top: tuple[Path, ...]
    below: dict[str, tuple[Path, ...]]
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def files(self) -> list[Path]:
        return [*self.top, *(file for files in self.below.values() for file in files)]

    def note(self, path: Path) -> str:
        """What was skipped, for people; empty when it was nothing."""
        if not self.skipped:
            return ""
        counts = ", ".join(f"{count:,} {ending or 'without an ending'}" for ending, count in self.skipped.most_common())
        return f"{path}: files that are not read as images: {counts}"


def walk_images(folder: Path) -> Walk:
    """Every image below a folder, in sorted order."""
    skipped: Counter[str] = Counter()
    top, folders = _entries(folder, skipped)
    below = {}
    for entry in folders:
        found: list[Path] = []
        _descend(entry, [_identity(folder)], set(), found, skipped)
        if found:
            below[entry.name] = tuple(found)
    return Walk(tuple(top), below, skipped)


def find_images(paths: Sequence[Path], notes: list[str] | None = None) -> list[Path]:
    """The image files named, and those below the folders named, sorted in each; what was skipped is added to `notes`.

    Raises DataError when there are none.
    """
    found: list[Path] = []
    said: list[str] = [] if notes is None else notes
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        walk = walk_images(path)
        found += sorted(walk.files)
        said += [walk.note(path)] if walk.skipped else []
    if not found:
        raise DataError(". ".join([f"no images in {', '.join(map(str, paths))}", *said]) + ".")
    return found


class FolderSource:
    """One subfolder per class, searched to the bottom; or images without labels, when some lie at the top."""

    def __init__(self, path: Path) -> None:
        walk = walk_images(path)
        self.classes: tuple[str, ...] = () if walk.top else tuple(walk.below)
        self._files = walk.files
        self.skipped = walk.note(path)
        if not self._files:
            raise DataError(f"{path} holds no images ({', '.join(SUFFIXES)}). {self.skipped}".rstrip())
        lengths = [len(files) for files in walk.below.values()]
        self.labels = None if walk.top else np.repeat(np.arange(len(lengths)), lengths).astype(np.int64)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        label = None if self.labels is None else int(self.labels[index])
        return Sample(read_image(self._files[index]), label, str(self._files[index]))

    def file_states(self, start: int, stop: int) -> list[FileState]:
        """Of each image: name, size, and when its content and its entry in the file system changed."""
        return [file_state(file) for file in self._files[start:stop]]


def file_state(path: Path) -> FileState:
    """Name, size, time of the last writing and of the last change (which a copied time stamp does not set back), in ns."""
    try:
        status = path.stat()
    except OSError:
        return str(path), -1, 0, 0  # deleted meanwhile, which is a state as well
    return str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_image(name: str) -> bool:
    """By its ending; hidden files are none."""
    return name.lower().endswith(SUFFIXES) and not PurePosixPath(name).name.startswith(".")


def _entries(folder: Path, skipped: Counter[str]) -> tuple[list[Path], list[Path]]:
    """Images and folders directly in a folder, sorted, without hidden ones."""
    images, folders = [], []
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        skipped[CLOSED] += 1
        return [], []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            folders.append(entry)
        elif entry.is_file() and is_image(entry.name):
            images.append(entry)
        else:
            skipped[entry.suffix.lower()] += 1
    return images, folders


def _descend(
    folder: Path, above: list[tuple[int, int]], followed: set[tuple[int, int]], found: list[Path], skipped: Counter[str]
) -> None:
    here = _identity(folder)
    if here in above:
        return  # a link back into a folder that it lies in
    if folder.is_symlink():
        link = folder.lstat()
        if (link.st_dev, link.st_ino) in followed:
            return
        followed.add((link.st_dev, link.st_ino))
    images, folders = _entries(folder, skipped)
    found += images
    for entry in folders:
        _descend(entry, [*above, here], followed, found, skipped)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino

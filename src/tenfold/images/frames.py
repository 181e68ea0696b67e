"""Segmentation and depth data, an image with a mask or depth map each: a parquet file, or folders `images/` and `masks/`.

    frames = open_frames(Path("camvid_train.parquet"))
    frames.images[3], frames.masks[3]               uint8 (h, w, 3), int64 (h, w) of class ids
    frames.ignored                                  the id that no score counts, where the file names one

Parquet columns: `image` (encoded bytes), `mask` (PNG of ids or colours, see masks.py) or `depth` (the bytes of a .npy array
in metres, 0 or NaN where unknown), `name` (the order of a clip: what stands before the last `_` says which clip). Class names
come from the schema's metadata entry `classes`; a last name such as Unlabelled or Void is the ignored id, not a class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tenfold.data.folders import is_image
from tenfold.data.parquet import parquet_rows
from tenfold.data.readers import read_npy, read_oriented
from tenfold.errors import DataError
from tenfold.images.masks import IGNORE, beside_pictures, class_ids, read_mask

IGNORED_NAMES = ("unlabelled", "unlabeled", "void", "ignore", "ignored", "background/void")


@dataclass(frozen=True)
class Frames:
    """Frames in the order of the file. `masks` (class ids) or `depths` (metres) is empty, never both full."""

    name: str
    names: tuple[str, ...]
    images: tuple[UInt8[Tensor, "_ _ 3"], ...]
    masks: tuple[Int[Tensor, "_ _"], ...]
    depths: tuple[Float[Tensor, "_ _"], ...]
    classes: tuple[str, ...]
    ignored: int

    def __len__(self) -> int:
        return len(self.images)

    def clips(self, length: int) -> list[range]:
        """Windows of `length` successive frames of one clip that do not overlap. Raises DataError when there is none."""
        prefixes = [name.rpartition("_")[0] for name in self.names]
        found, start = [], 0
        while start + length <= len(self):
            other = next((i for i in range(start, start + length) if prefixes[i] != prefixes[start]), None)
            if other is None:
                found.append(range(start, start + length))
                start += length
            else:
                start = other
        if length < 2 or not found:
            raise DataError(
                f"{self.name}: a clip needs at least 2 frames and {length} were asked for (--frames); the file has "
                f"{len(self)} frames in {len(set(prefixes))} clips."
            )
        return found


def refuse_one_class(frames: Frames) -> None:
    """Raises DataError when every method would score 100: with fewer than two classes nothing can be wrong."""
    if len(frames.classes) < 2:
        left = f"class {frames.classes[0]} alone" if frames.classes else "no class"
        raise DataError(
            f"{frames.name}: its masks hold {left} beside {frames.ignored}, which means 'ignored', so nothing could be wrong. "
            f"Give masks of two classes or more."
        )


def open_frames(path: Path, kind: Literal["mask", "depth"] = "mask", limit: int | None = None) -> Frames:
    """The first `limit` frames of a parquet file or a folder. Raises DataError that names the file and the row or field."""
    if path.is_dir():
        rows, classes = _folder_rows(path, kind), ()
    else:
        rows, classes = _parquet_rows(path, kind)
    pictures, turns, targets, own = [], [], [], []
    for where, _, image, target in rows[:limit]:
        picture, orientation = read_oriented(image, f"{where}, image")
        pictures.append(torch.from_numpy(picture))
        turns.append(orientation)
        targets.append(read_mask(target, f"{where}, mask") if kind == "mask" else _depth(target, f"{where}, depth"))
    if not pictures:
        raise DataError(f"{path} has no frames.")
    ignored, names = IGNORE, tuple(name for _, name, _, _ in rows[:limit])
    if kind == "mask":
        own = [mask.orientation for mask in targets]
        for (where, *_), mask in zip(rows, targets):
            if classes and mask.colours:
                raise DataError(
                    f"{where}, mask is a PNG of mode RGB, and the file names its classes: ids stand in one channel, grey or a "
                    f"palette. Convert it, or leave `classes` out of the metadata, and every colour is a class."
                )
        targets, colours, ignored = class_ids(targets, str(path), declared=bool(classes))
        classes = classes or colours
    placed = [(picture.shape[:2], turn) for picture, turn in zip(pictures, turns)]
    labels = [torch.from_numpy(t) for t in beside_pictures(targets, own or [None] * len(targets), placed)]
    for (where, *_), target, picture in zip(rows, labels, pictures):
        if target.shape != picture.shape[:2]:
            raise DataError(
                f"{where}: {kind} has {target.shape[0]} x {target.shape[1]} pixels and its image {picture.shape[0]} x "
                f"{picture.shape[1]}; they must be of one size."
            )
    if classes and classes[-1].lower() in IGNORED_NAMES:
        classes, ignored = classes[:-1], len(classes) - 1
    if kind == "depth":
        return Frames(str(path), names, tuple(pictures), (), tuple(labels), classes, ignored)
    classes = classes or _counted(labels, ignored)
    for name, mask in zip(names, labels):
        strange = mask[(mask >= len(classes)) & (mask != ignored)]
        if len(strange):
            raise DataError(
                f"{path}, mask of {name}: class id {int(strange[0])}; allowed are 0 to {len(classes) - 1} and "
                f"{ignored} (ignored)."
            )
    return Frames(str(path), names, tuple(pictures), tuple(labels), (), classes, ignored)


def matching(train: Frames, val: Frames) -> None:
    """Raises DataError unless both sets have the same classes."""
    if train.classes != val.classes or train.ignored != val.ignored:
        raise DataError(
            f"the classes of {val.name} ({', '.join(val.classes)}) are not those of {train.name} "
            f"({', '.join(train.classes)})."
        )


def _counted(masks: list[Tensor], ignored: int) -> tuple[str, ...]:
    seen = [int(mask[mask != ignored].max()) for mask in masks if bool((mask != ignored).any())]
    return tuple(str(i) for i in range(max(seen, default=-1) + 1))


def _depth(data: Path | bytes, where: str) -> np.ndarray:
    depth = read_npy(data, where)
    if depth.ndim != 2 or depth.dtype.kind not in "fiu":
        raise DataError(f"{where} is {depth.dtype} of shape {depth.shape}; a depth map is numbers (h, w), in metres.")
    return np.nan_to_num(depth.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)


def _parquet_rows(path: Path, kind: str) -> tuple[list[tuple[str, str, bytes, bytes]], tuple[str, ...]]:
    columns, metadata = parquet_rows(path, ("image", kind), optional=("name",))
    names = columns.get("name") or [f"row_{i:06d}" for i in range(len(columns["image"]))]
    rows = []
    for i, (name, image, target) in enumerate(zip(names, columns["image"], columns[kind])):
        for field, value in (("image", image), (kind, target)):
            if not isinstance(value, bytes):
                raise DataError(f"{path}, row {i}, {field}: no bytes.")
        rows.append((f"{path}, row {i}", str(name), image, target))
    return rows, tuple(metadata.get("classes", "").split(",")) if metadata.get("classes") else ()


def _folder_rows(path: Path, kind: str) -> list[tuple[str, str, Path, Path]]:
    images, targets = path / "images", path / f"{kind}s"
    for part in (images, targets):
        if not part.is_dir():
            raise DataError(
                f"{path} has no folder {part.name}/; images/ and {kind}s/ with the same file names are read."
            )
    ending = ".png" if kind == "mask" else ".npy"
    rows: list[tuple[str, str, Path, Path]] = []
    for image in sorted(p for p in images.iterdir() if is_image(p.name)):
        target = targets / f"{image.stem}{ending}"
        if not target.exists():
            raise DataError(f"{image} has no {kind}: {target} does not exist.")
        rows.append((str(image), image.stem, image, target))
    return rows

"""Segmentation masks, in every way that a PNG stores them: to class ids, turned as the photograph beside them.

    mask = read_mask("masks/0001.png")              Mask(values, bits, colours, orientation)
    ids, classes, ignored = class_ids(masks, path)  of a whole set, for what a value means depends on the others
    pixels = beside_pictures(targets, pictures)     turned as the pictures were by their EXIF tags

Values are ids in grey of 1, 2, 4, 8 or 16 bits and in palettes (their indices). 0 with 255 alone (or 65,535 of 16 bits) are
two classes; with others beside, 255 is ignored. Colours are classes by themselves, named by their hexadecimal number.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped

from tenfold.data.readers import (
    MAX_IMAGE_BYTES,
    MAX_PIXELS,
    MAX_SIDE,
    ORIENTATION,
    orientation_of,
    pillow,
    read_bytes,
    upright,
)
from tenfold.errors import DataError

IGNORE, IGNORE_16 = 255, 65_535  # the ids that no score counts where a file names none
MAX_COLOURS = 256  # more than that are a photograph, or edges that were smoothed
DEPTH_AT = 24  # the byte of a PNG that has its bits per channel


@dataclass(frozen=True)
class Mask:
    """`values` as they are stored: ids, or 0xRRGGBB with `colours`. `orientation` is the mask's own EXIF tag, if it has one."""

    values: Int[np.ndarray, "h w"]
    bits: int
    colours: bool = False
    orientation: int | None = None


def read_mask(source: Path | str | bytes, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Mask:
    """Raises DataError as `read_image` does, for other formats than PNG, and for transparency."""
    PIL_Image = pillow()
    name = name or (str(source) if not isinstance(source, bytes) else "mask")
    data = source if isinstance(source, bytes) else read_bytes(source, MAX_IMAGE_BYTES)
    try:
        with PIL_Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            width, height = image.size
            if width * height > max_pixels or max(width, height) > MAX_SIDE:
                raise DataError(
                    f"{name} is {width} x {height} pixels; allowed are {max_pixels:,} in all and {MAX_SIDE:,} a side."
                )
            image.load()
            values, bits, colours = _values(image, data[DEPTH_AT], name)
            return Mask(values, bits, colours, orientation_of(image) if ORIENTATION in image.getexif() else None)
    except DataError:
        raise
    except PIL_Image.UnidentifiedImageError as error:
        raise DataError(f"{name} is not a PNG; class ids must survive compression.") from error
    except MemoryError as error:
        raise DataError(f"{name} does not fit into memory.") from error
    except Exception as error:
        raise DataError(f"{name} cannot be decoded: {error or type(error).__name__}.") from error


def class_ids(
    masks: Sequence[Mask], where: str, declared: bool = False
) -> tuple[list[Int[np.ndarray, "_ _"]], tuple[str, ...], int]:
    """Ids of every mask of a set, the names of its classes where they are colours (else none), and the id that is ignored.

    declared: the file names its classes, so every value is an id. Raises DataError where colours cannot be classes.
    """
    values = [mask.values for mask in masks]
    coloured = [mask.colours and not _is_grey(mask.values) for mask in masks]
    if any(coloured):
        if not all(mask.colours for mask in masks):
            raise DataError(
                f"{where}: mask {coloured.index(True)} is drawn in colours (RGB), and others of the set are ids."
            )
        found = np.unique(np.concatenate([np.unique(part) for part in values]))
        if len(found) > MAX_COLOURS:
            raise DataError(
                f"{where}: the masks have {len(found):,} colours; allowed are {MAX_COLOURS}, one a class. Were they smoothed "
                f"or compressed? Save them without antialiasing."
            )
        ids = [np.searchsorted(found, part).astype(np.int64) for part in values]
        return ids, tuple(f"#{colour:06x}" for colour in found.tolist()), IGNORE_16
    ids = [(part & 0xFF if mask.colours else part).astype(np.int64) for part, mask in zip(values, masks)]
    seen = set(np.unique(np.concatenate([np.unique(part) for part in ids])).tolist()) if ids else set()
    if not declared and seen in ({0, IGNORE}, {0, IGNORE_16}):
        return [(part > 0).astype(np.int64) for part in ids], (), IGNORE
    wide = any(mask.bits == 16 for mask in masks) and max(seen, default=0) > IGNORE
    return ids, (), IGNORE_16 if wide else IGNORE


def beside_pictures(
    targets: Sequence[Shaped[np.ndarray, "_ _"]],
    own: Sequence[int | None],
    pictures: Sequence[tuple[tuple[int, int], int]],
) -> list[Shaped[np.ndarray, "_ _"]]:
    """Masks or depth maps, turned to fit their pictures (upright shape, EXIF orientation of each).

    own: the target's own EXIF tag, which is followed where there is one. Otherwise the shape says whether a target was drawn on
    the stored pixels or on the turned picture; where both fit, the others of the set say it, and without them it was drawn on
    the stored pixels.
    """
    fits = []
    for target, (shape, turn) in zip(targets, pictures):
        stored = shape[::-1] if turn in (5, 6, 7, 8) else shape
        fits.append((turn != 1 and target.shape == stored, turn != 1 and target.shape == shape))
    asked = [fit for fit, tag in zip(fits, own) if tag is None]
    on_turned = (False, True) in asked and (True, False) not in asked
    turned = []
    for target, tag, (stored, as_shown), (_, turn) in zip(targets, own, fits, pictures):
        if tag is not None:
            turned.append(upright(target, tag))
        else:
            turned.append(upright(target, turn) if stored and not (as_shown and on_turned) else target)
    return [np.ascontiguousarray(target) for target in turned]


def _values(image: object, depth: int, name: str) -> tuple[Int[np.ndarray, "h w"], int, bool]:
    """Values, bits and whether they are colours."""
    mode: str = image.mode  # type: ignore[attr-defined]
    pixels = np.asarray(image).astype(np.int64)
    if mode in ("LA", "RGBA"):
        if (pixels[..., -1] != 255).any():
            raise DataError(f"{name} is a PNG of mode {mode} with transparent pixels, which have no class.")
        pixels, mode = (pixels[..., 0], "L") if mode == "LA" else (pixels[..., :3], "RGB")
    if mode == "RGB":
        return pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2], depth, True
    if mode == "L" and depth in (2, 4):
        pixels = pixels // (255 // (2**depth - 1))  # Pillow spreads them over 0 to 255
    elif mode not in ("1", "L", "P", "I", "I;16"):
        raise DataError(f"{name} is a PNG of mode {mode}; grey, palette and RGB are read.")
    return pixels, depth, False


def _is_grey(colours: Int[np.ndarray, "h w"]) -> bool:
    return bool(((colours >> 16 == colours & 0xFF) & (colours >> 8 & 0xFF == colours & 0xFF)).all())

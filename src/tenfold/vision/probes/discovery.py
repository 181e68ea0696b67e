"""Object discovery: does the object that features find without any label have the place of a true one?

    score = discovery_score(found, frames)                    masks found, (H, W) bool; true masks: 0 is background

CorLoc: the share of images in which the box of what was found overlaps the box of a true object by half or more (LOST, arXiv
2109.14279, section 4.1). An object is a connected part of one class; parts below a thousandth of the image are not an object.

    H W image sides   n objects
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tenfold.errors import DataError, MissingExtra
from tenfold.images.frames import Frames

SMALLEST = 1e-3  # share of the image
Box = tuple[int, int, int, int]  # top, left, bottom, right; the last two are one past the end


@dataclass(frozen=True)
class DiscoveryScore:
    """Both per cent: CorLoc, and the mean IoU of the mask with all true objects of its image together."""

    corloc: float
    miou: float


def true_boxes(mask: Int[Tensor, "H W"], ignored: int) -> list[Box]:
    """The boxes of a true mask's objects."""
    try:
        import cv2
    except ImportError as error:
        raise MissingExtra("opencv-python-headless", "vision", "it finds connected parts") from error
    boxes = []
    for label in mask.unique().tolist():
        if label in (0, ignored):
            continue
        count, _, stats, _ = cv2.connectedComponentsWithStats((mask == label).numpy().astype(np.uint8))
        for left, top, width, height, area in stats[1:count].tolist():
            if area >= SMALLEST * mask.numel():
                boxes.append((top, left, top + height, left + width))
    return boxes


def box_of(mask: Bool[Tensor, "H W"]) -> Box:
    """The box of a mask; of nothing (0, 0, 0, 0)."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    if not len(rows):
        return 0, 0, 0, 0
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union."""
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(0, height) * max(0, width)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return common / (areas - common) if areas > common else 0.0


def discovery_score(found: Sequence[Bool[Tensor, "_ _"]], frames: Frames) -> DiscoveryScore:
    """Over the images that have an object. Raises DataError when none has."""
    hits, overlaps = [], []
    for found_mask, mask in zip(found, frames.masks, strict=True):
        boxes = true_boxes(mask, frames.ignored)
        if not boxes:
            continue
        hits.append(max(box_iou(box_of(found_mask), box) for box in boxes) >= 0.5)
        counted = mask != frames.ignored
        true = (mask != 0) & counted
        union = ((found_mask & counted) | true).sum()
        overlaps.append(float((found_mask & true).sum() / union))
    if not hits:
        raise DataError(f"{frames.name} has no object: every mask is 0 (background) or {frames.ignored} (ignored).")
    return DiscoveryScore(100.0 * sum(hits) / len(hits), 100.0 * sum(overlaps) / len(overlaps))


def blind_boxes(height: int, width: int) -> dict[str, Bool[Tensor, "H W"]]:
    """Baselines that look at nothing: the whole image, and its middle with half its sides or three quarters of them."""
    boxes = {"whole image": torch.ones(height, width, dtype=torch.bool)}
    for share, name in ((1 / 2, "middle half"), (3 / 4, "middle three quarters")):
        box = torch.zeros(height, width, dtype=torch.bool)
        top, left = round(height * (1 - share) / 2), round(width * (1 - share) / 2)
        box[top : height - top, left : width - left] = True
        boxes[name] = box
    return boxes

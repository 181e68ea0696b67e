"""Drawing of what features found: images side by side, match lines, masks over photographs; written whole or not at all.

    write_png(Path("matches.png"), match_lines(left, right, source, target))

Everything here is uint8 (h, w, 3).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tenfold.data.atomic import write_atomic
from tenfold.errors import MissingExtra
from tenfold.images.augment import opencv

GAP = 6  # white pixels between pictures


def write_png(path: Path, picture: UInt8[Tensor, "h w 3"]) -> Path:
    """Written aside and renamed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", "vision", "it writes pictures") from error
    buffer = io.BytesIO()
    Image.fromarray(picture.numpy()).save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())
    return path


def side_by_side(pictures: Sequence[UInt8[Tensor, "_ _ 3"]]) -> UInt8[Tensor, "h w 3"]:
    """Left to right on white, top edges level."""
    height = max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] for picture in pictures) + GAP * (len(pictures) - 1)
    canvas = torch.full((height, width, 3), 255, dtype=torch.uint8)
    left = 0
    for picture in pictures:
        canvas[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1] + GAP
    return canvas


def palette(count: int) -> UInt8[Tensor, "count 3"]:
    """Colours that differ in hue, the golden ratio of a turn apart, so that neighbours never look alike."""
    hue = (np.arange(count) * 0.618034 % 1.0) * 180
    hsv = np.stack([hue, np.full(count, 200), np.full(count, 255)], axis=1).astype(np.uint8)
    return torch.from_numpy(opencv().cvtColor(hsv[None], opencv().COLOR_HSV2RGB)[0])


def match_lines(
    left: UInt8[Tensor, "_ _ 3"],
    right: UInt8[Tensor, "_ _ 3"],
    source: Float[Tensor, "n 2"],
    target: Float[Tensor, "n 2"],
) -> UInt8[Tensor, "h w 3"]:
    """Both images with a line from (x, y) on the left to (x, y) on the right; the colour follows the place on the left, so
    that wrong lines cross in other colours."""
    cv2 = opencv()
    canvas = np.ascontiguousarray(side_by_side([left, right]).numpy())
    shift = torch.tensor([left.shape[1] + GAP, 0])
    order = (source[:, 0] + source[:, 1]).argsort().argsort() if len(source) else []
    hues = np.zeros((1, max(1, len(source)), 3), np.uint8)
    hues[..., 1:] = 255
    hues[0, :, 0] = np.linspace(0, 150, max(1, len(source)))
    colors = cv2.cvtColor(hues, cv2.COLOR_HSV2RGB)[0]
    for place, a, b in zip(order, source, target + shift):
        start, end = ((round(float(x)), round(float(y))) for x, y in (a, b))
        color = tuple(int(c) for c in colors[int(place)])
        cv2.line(canvas, start, end, color, 1, cv2.LINE_AA)
        cv2.circle(canvas, start, 2, color, -1, cv2.LINE_AA)
        cv2.circle(canvas, end, 2, color, -1, cv2.LINE_AA)
    return torch.from_numpy(canvas)


def overlay(
    image: UInt8[Tensor, "h w 3"], mask: Int[Tensor, "h w"], classes: int, share: float = 0.5, clear: int | None = None
) -> UInt8[Tensor, "h w 3"]:
    """The photograph tinted by class; ids that are not a class, and `clear`, stay as they are."""
    colors = palette(max(1, classes)).float()
    tinted = (1 - share) * image.float() + share * colors[mask.clamp(max=classes - 1)]
    shown = (mask < classes) & (mask != (-1 if clear is None else clear))
    return torch.where(shown[..., None], tinted, image.float()).round().to(torch.uint8)

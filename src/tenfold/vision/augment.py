"""What a drawn view does to pixels: torchvision's operations on uint8, by OpenCV and look-up tables.

    apply(view, image, out)          out uint8 (side, side, 3) is filled with the view of image uint8 (h, w, 3)

Resizing is torch's antialiased bicubic on a channels-last view (within one grey level of Pillow; OpenCV's own cubic does
not antialias, and its INTER_AREA is 9 levels off). Brightness, contrast and solarize are tables of 256 values; saturation
is a 3 x 3 matrix; hue is an addition in HSV; blur is a separable filter whose taps are multiples of 1/256, as OpenCV's
own fixed-point blur has them, without the taps that are zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8

from tenfold.errors import MissingExtra

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
LEVELS = np.arange(256)
SOLARIZED = np.where(LEVELS >= 128, 255 - LEVELS, LEVELS).astype(np.uint8)
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601, as Pillow and OpenCV
RADIUS = 4  # 9 taps


@dataclass(frozen=True)
class View:
    """One crop before it is made: `box` is (top, left, height, width); `jitter` are (operation, factor) in the order in
    which they are applied, empty for none; `sigma` is the blur's, None for none."""

    box: tuple[int, int, int, int]
    flip: bool
    jitter: tuple[tuple[int, float], ...]
    gray: bool
    sigma: float | None
    solarize: bool


def apply(view: View, image: UInt8[np.ndarray, "h w 3"], out: UInt8[np.ndarray, "s s 3"]) -> None:
    """Fills `out` with the view of `image`."""
    cv2 = opencv()
    top, left, height, width = view.box
    pixels = resize(image[top : top + height, left : left + width], out.shape[0])
    if view.flip:
        pixels = cv2.flip(pixels, 1)
    for kind, factor in view.jitter:
        pixels = JITTER[kind](pixels, factor)
    if view.gray:
        pixels = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if view.sigma is not None:
        taps = blur_taps(view.sigma)
        pixels = cv2.sepFilter2D(pixels, -1, taps, taps)  # mirrors at the border, as torchvision's reflect padding
    if view.solarize:
        pixels = cv2.LUT(pixels, SOLARIZED)
    out[:] = pixels


def resize(crop: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Bicubic, antialiased, squashed to a square."""
    # The batch axis comes before the permutation: only then does torch see channels-last, which is 1.5 times as fast
    # and gives pixels that OpenCV takes without a copy.
    planes = torch.from_numpy(crop)[None].permute(0, 3, 1, 2)
    planes = F.interpolate(planes, size=(side, side), mode="bicubic", antialias=True)
    return planes[0].permute(1, 2, 0).numpy()


def blur_taps(sigma: float) -> np.ndarray:
    """A Gaussian of 9 taps in multiples of 1/256 that add up to 1; taps that round to zero are left out."""
    taps = np.exp(-(np.arange(-RADIUS, RADIUS + 1) ** 2) / (2 * sigma * sigma))
    taps = np.rint(256 * taps / taps.sum())
    taps[RADIUS] += 256 - taps.sum()
    return taps[taps > 0] / 256


def brightness(pixels: UInt8[np.ndarray, "h w 3"], factor: float) -> UInt8[np.ndarray, "h w 3"]:
    """factor * x."""
    return opencv().LUT(pixels, _table(LEVELS * factor))


def contrast(pixels: UInt8[np.ndarray, "h w 3"], factor: float) -> UInt8[np.ndarray, "h w 3"]:
    """Blends with the image's mean grey, rounded to a level as Pillow does."""
    cv2 = opencv()
    mean = int(cv2.mean(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return cv2.LUT(pixels, _table(LEVELS * factor + mean * (1 - factor)))


def saturation(pixels: UInt8[np.ndarray, "h w 3"], factor: float) -> UInt8[np.ndarray, "h w 3"]:
    """Blends each pixel with its grey."""
    matrix = factor * np.eye(3) + (1 - factor) * LUMA
    return opencv().transform(pixels, matrix.astype(np.float32))


def hue(pixels: UInt8[np.ndarray, "h w 3"], factor: float) -> UInt8[np.ndarray, "h w 3"]:
    """Turns the hue by `factor` of the circle, in steps of 1/256."""
    cv2 = opencv()
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(factor * 255) % 256)  # wraps around, as the circle does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


JITTER: tuple[Callable[[np.ndarray, float], np.ndarray], ...] = (brightness, contrast, saturation, hue)


@cache
def opencv() -> Any:
    """OpenCV on one thread: a loader's parallelism is its workers, and the trainer has the cores."""
    try:
        import cv2
    except ImportError as error:
        raise MissingExtra("opencv-python-headless", "vision", "it colours and blurs crops") from error
    cv2.setNumThreads(1)
    return cv2


def _table(values: np.ndarray) -> np.ndarray:
    return values.clip(0, 255).astype(np.uint8)  # Pillow's blend truncates

"""Image augmentation, what a drawn view does to pixels: torchvision's operations on uint8, by OpenCV and lookup tables.

    apply(view, image, out)          out uint8 (side, side, 3) is filled with the view of image uint8 (h, w, 3)

Resizing is torch's antialiased bicubic on a channels-last view: Pillow's algorithm, horizontal pass first as in every
Pillow that published models were trained with (13 begins with the vertical one where that is cheaper). OpenCV's own
cubic does not antialias, and its INTER_AREA is 9 levels off. Brightness, contrast and saturation are 3 x 4 matrices, hue
is an addition in HSV, blur a separable filter whose taps are multiples of 1/256, as OpenCV's own fixed-point blur has
them, without the taps that are zero. Everything after the resize works in place.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8

from tenfold.errors import MissingExtra

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow and OpenCV
TRUNCATE = -0.498  # OpenCV rounds where Pillow's blend truncates
RADIUS = 4  # 9 taps


class View(NamedTuple):
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
        cv2.flip(pixels, 1, pixels)
    for kind, factor in view.jitter:
        if kind == HUE:
            shift_hue(pixels, factor)
        else:
            cv2.transform(pixels, color_matrix(kind, factor, pixels), pixels)
    if view.gray:
        cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB, pixels)
    if view.sigma is not None:
        taps = blur_taps(view.sigma)
        cv2.sepFilter2D(pixels, -1, taps, taps, pixels)  # mirrors at the border, as torchvision's reflect padding
    if view.solarize:
        cv2.min(pixels, cv2.bitwise_not(pixels), pixels)  # min(x, 255 - x) inverts from 128 upwards
    out[:] = pixels


def resize(crop: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Bicubic, antialiased, squashed to a square; a new array."""
    # The batch axis comes before the permutation: only then does torch see channels-last, which is 1.5 times as fast
    # and gives pixels that OpenCV takes without a copy.
    planes = torch.from_numpy(crop).unsqueeze(0).permute(0, 3, 1, 2)
    planes = F.interpolate(planes, size=(side, side), mode="bicubic", antialias=True)
    pixels = planes[0].permute(1, 2, 0).numpy()
    return (
        pixels.copy() if planes.shape[-2:] == crop.shape[:2] else pixels
    )  # torch returns the input when nothing changes


def blur_taps(sigma: float) -> np.ndarray:
    """A Gaussian of 9 taps in multiples of 1/256 that add up to 1; taps that round to zero are left out."""
    taps = np.exp(-(np.arange(-RADIUS, RADIUS + 1) ** 2) / (2 * sigma * sigma))
    taps = np.rint(256 * taps / taps.sum())
    taps[RADIUS] += 256 - taps.sum()
    return taps[taps > 0] / 256


def color_matrix(kind: int, factor: float, pixels: UInt8[np.ndarray, "h w 3"]) -> np.ndarray:
    """float32 (3, 4): brightness is factor * x; contrast blends with the image's mean grey, rounded to a level as Pillow
    does; saturation blends each pixel with its own grey."""
    rest = 1 - factor
    if kind == SATURATION:
        r, g, b = (rest * weight for weight in LUMA)
        rows = ((r + factor, g, b, TRUNCATE), (r, g + factor, b, TRUNCATE), (r, g, b + factor, TRUNCATE))
        return np.array(rows, np.float32)
    shift = TRUNCATE
    if kind == CONTRAST:
        means = opencv().mean(pixels)
        shift += rest * int(sum(weight * mean for weight, mean in zip(LUMA, means)) + 0.5)
    return np.array(((factor, 0, 0, shift), (0, factor, 0, shift), (0, 0, factor, shift)), np.float32)


def shift_hue(pixels: UInt8[np.ndarray, "h w 3"], factor: float) -> None:
    """Turns the hue by `factor` of the circle, in steps of 1/256, in place."""
    cv2 = opencv()
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(factor * 255) % 256)  # wraps around, as the circle does
    cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, pixels)


@cache
def opencv() -> Any:
    """OpenCV on one thread: a loader's parallelism is its workers, and the trainer has the cores."""
    try:
        import cv2
    except ImportError as error:
        raise MissingExtra(
            "opencv-python-headless", "vision", "it colours and blurs crops, and computes optical flow"
        ) from error
    cv2.setNumThreads(1)
    return cv2

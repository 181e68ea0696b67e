"""Block masking, the patches that the student does not see: BEiT's blocks, with DINOv2's spread of ratios and exact counts.

    masks = block_masks(128, (14, 14), (0.1, 0.5), generator)          bool (128, 196), 64 of them masked

BEiT (arXiv 2106.08254, algorithm 1); DINOv2 (arXiv 2304.07193, appendix B.1).
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool

from tenfold.config import require

MIN_BLOCK = 4  # patches
ASPECT = 0.3  # narrowest height to width
TRIES = 10


def block_masks(
    count: int,
    grid: tuple[int, int],
    ratio: tuple[float, float],
    generator: np.random.Generator,
    probability: float = 0.5,
) -> Bool[np.ndarray, "count P"]:
    """Masks of `count` crops of `grid` = (rows, columns) patches, True where the student sees the mask token.

    `probability` of the crops, chosen at random, are masked; the n of them get the upper edges of `ratio` cut into n
    equal parts, so that a batch always holds the same number of masked patches. Raises UsageError for shares outside
    [0, 1].
    """
    low, high = ratio
    require(0 <= low <= high <= 1, "ratio", ratio, "two rising shares in [0, 1]")
    require(0 <= probability <= 1, "probability", probability, "a share in [0, 1]")
    rows, columns = grid
    masks = np.zeros((count, rows * columns), bool)
    masked = int(count * probability)
    edges = np.linspace(low, high, masked + 1)[1:]
    for crop, share in zip(generator.permutation(count)[:masked], edges):
        masks[crop] = _mask(rows, columns, int(rows * columns * share), generator).ravel()
    return masks


def _mask(rows: int, columns: int, target: int, generator: np.random.Generator) -> Bool[np.ndarray, "h w"]:
    """Blocks while one of 10 tries fits, then single patches at random up to `target` exactly."""
    mask = np.zeros((rows, columns), bool)
    left = target
    while left >= MIN_BLOCK:
        added = _add_block(mask, left, generator)
        if added == 0:
            break
        left -= added
    if left:
        free = np.flatnonzero(~mask)
        mask.flat[generator.choice(free, left, replace=False)] = True
    return mask


def _add_block(mask: Bool[np.ndarray, "h w"], at_most: int, generator: np.random.Generator) -> int:
    """Masks one rectangle that adds between 1 and `at_most` patches; returns how many, 0 when no try did."""
    rows, columns = mask.shape
    for area, log_aspect, y, x in generator.random((TRIES, 4)):
        area = MIN_BLOCK + area * (at_most - MIN_BLOCK)
        aspect = math.exp((2 * log_aspect - 1) * math.log(1 / ASPECT))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= rows or width >= columns:
            continue
        top, left = int(y * (rows - height + 1)), int(x * (columns - width + 1))
        block = mask[top : top + height, left : left + width]
        new = block.size - int(block.sum())
        if 0 < new <= at_most:
            block[:] = True
            return new
    return 0

"""One image with its label and its name: what every source yields.

    Sample(image, 3, "n01440764/0001.jpg")

Images are uint8 arrays (h, w, 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sample:
    """`image` uint8 (h, w, 3); `label` indexes the source's classes, None without labels; `name` is for messages."""

    image: np.ndarray
    label: int | None
    name: str


def by_name(names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels and sorted classes from one class name per row."""
    classes = tuple(sorted(set(names)))
    index = {name: number for number, name in enumerate(classes)}
    return np.array([index[name] for name in names], np.int64), classes

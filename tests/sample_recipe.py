"""A recipe with every kind of field that a configuration may have, for tests of the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tenfold.config import require
from tenfold.engine.recipe import Recipe
from tenfold.engine.schedule import Schedule


@dataclass(frozen=True)
class Part:
    """A part that stands in two places; its own messages call it `part`."""

    width: int = 4  # a whole number
    scale: tuple[float, float] = (0.1, 1.0)  # two numbers
    kind: Literal["square", "round"] = "square"  # a choice

    def __post_init__(self) -> None:
        require(self.width >= 1, "part.width", self.width, "a whole number >= 1")
        require(0 <= self.scale[0] <= self.scale[1], "part.scale", self.scale, "two rising numbers >= 0")


@dataclass(frozen=True)
class Sample(Recipe):
    """Fields of every kind."""

    first: Part = field(default_factory=Part)
    second: Part = field(default_factory=Part)
    temperature: Schedule = field(default_factory=lambda: Schedule("constant", 0.07))
    batch: int = 8  # images
    limit: int | None = None  # a whole number or None
    path: Path | None = None  # a path or None
    sides: tuple[int, ...] = (2,)  # any number of whole numbers
    fast: bool = False  # a switch

    def __post_init__(self) -> None:
        require(self.batch >= 1, "batch", self.batch, "a whole number >= 1")
        require(self.limit is None or self.limit >= 1, "limit", self.limit, "None or a whole number >= 1")
        require(all(side >= 1 for side in self.sides), "sides", self.sides, "whole numbers >= 1")


def sample() -> Sample:
    return Sample()

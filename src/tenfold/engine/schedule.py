"""Schedules (learning rate, weight decay, temperatures, EMA momentum, loss weights) and the configuration of AdamW.

A schedule is a pure function of (step, total steps), so resuming needs no state and a short run keeps the shape of a
long one: every length is a number of steps (int) or a share of the run (float), see steps.py.

    Schedule(kind="cosine", peak=1.5e-3, warmup=0.05, final=0.02 * 1.5e-3).at(step, total)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from tenfold.config import require
from tenfold.errors import FieldError
from tenfold.steps import ALLOWED_LENGTHS, is_length, steps_of


@dataclass(frozen=True)
class Schedule:
    """From `start` up to `peak` over `warmup`, then towards `final` until the end of the run (or over `decay`).

    kind: constant | linear | cosine, the curve after warm-up.
    warmup, decay: steps (int) or fraction of the run (float). `decay=None` is the rest of the run; after it the value
    stays at `final`.
    """

    kind: Literal["constant", "linear", "cosine"] = "cosine"  # the curve after warm-up
    peak: float = 1.0  # the value after warm-up
    start: float = 0.0  # the value that warm-up starts from
    final: float = 0.0  # the value at the end
    warmup: int | float = 0  # steps (2) or share of the run (0.05)
    decay: int | float | None = None  # steps or share of the run from peak to final; None is the rest of the run

    def __post_init__(self) -> None:
        for name in ("peak", "start", "final"):
            value = getattr(self, name)
            if not math.isfinite(value):
                raise FieldError(f"schedule.{name}", value, "a finite number")
        for name in ("warmup", "decay"):
            value = getattr(self, name)
            if value is not None and not is_length(value):
                raise FieldError(f"schedule.{name}", value, ALLOWED_LENGTHS)

    def at(self, step: int, total: int) -> float:
        """The value for step `step` (0-based) of a run of `total` steps."""
        warmup = steps_of(self.warmup, total)
        if step < warmup:
            return self.start + (self.peak - self.start) * (step + 1) / (warmup + 1)
        if self.kind == "constant":
            return self.peak
        span = max(1, (total - warmup - 1) if self.decay is None else steps_of(self.decay, total))
        progress = min(1.0, (step - warmup) / span)
        if self.kind == "cosine":
            progress = 0.5 - 0.5 * math.cos(math.pi * progress)
        return self.peak + (self.final - self.peak) * progress


def constant(value: float) -> Schedule:
    """A value that does not change."""
    return Schedule(kind="constant", peak=value, final=value)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedules.

    `lr` is the peak; `schedule` gives its shape (its own `peak` multiplies `lr`, so 1.0 is the usual choice).
    `weight_decay` applies to matrices; norms, biases, gains and whatever the task exempts get none.
    `layer_decay` multiplies the rate of block i of n by `layer_decay ** (n - i)` (see Task.parameter_depth).
    `clip` is the largest gradient norm; `clip_per_module` applies it to each child of the model alone.
    """

    lr: float = 1e-3  # peak learning rate
    betas: tuple[float, float] = (0.9, 0.999)  # decay of the averages of the gradient and of its square
    eps: float = 1e-8  # added to the denominator of the update
    weight_decay: float = 0.04  # decoupled, at the first step
    weight_decay_end: float | None = None  # at the last step, along a cosine; None keeps it constant
    schedule: Schedule = field(default_factory=lambda: Schedule(kind="cosine", warmup=0.05, final=0.02))
    layer_decay: float = 1.0  # rate of each block over that of the next; 1 is the same rate for all
    clip: float | None = 3.0  # largest gradient norm; None does not clip
    clip_per_module: bool = False  # clip each child of the model by itself

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", self.lr, "a number above 0")
        require(all(0 <= b < 1 for b in self.betas), "optim.betas", self.betas, "two numbers in [0, 1)")
        require(self.eps > 0, "optim.eps", self.eps, "a number above 0")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "a number >= 0")
        end = self.weight_decay_end
        require(end is None or end >= 0, "optim.weight_decay_end", end, "None or a number >= 0")
        require(0 < self.layer_decay <= 1, "optim.layer_decay", self.layer_decay, "a number in (0, 1]")
        require(self.clip is None or self.clip > 0, "optim.clip", self.clip, "None or a number above 0")

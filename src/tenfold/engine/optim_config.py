"""Configuration of the optimizer: AdamW, its schedules, layer-wise decay and gradient clipping."""

from __future__ import annotations

from dataclasses import dataclass, field

from tenfold.config import require
from tenfold.engine.schedule import Schedule


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

"""Recipe: the configuration of a training run, and how it makes its task.

A recipe is a plain function in a wing's `recipes.py` that returns an instance of a `Recipe` subclass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tenfold.config import require
from tenfold.engine.schedule import OptimConfig
from tenfold.engine.task import Task


@dataclass(frozen=True)
class TrainerConfig:
    """How a run runs; what it learns is the task's business.

    `checkpoint_every` and `validate_every` count steps; 0 means only at the end. `keep` is the number of newest
    checkpoints kept (at least 2). `precision` bf16 keeps fp32 weights and runs the matrix products in bf16; auto does so
    where the device has units for it (on a CPU without them bf16 is many times slower). `data_errors` is the
    share of unreadable samples that a run skips before it stops.
    """

    steps: int = 1000  # optimizer steps of the whole run
    seed: int = 0  # of weights, data order and everything drawn
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto takes CUDA where it is
    precision: Literal["auto", "fp32", "bf16"] = (
        "fp32"  # of the matrix products; auto is bf16 where there are units for it
    )
    accumulation: int = 1  # batches per optimizer step
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"  # under torchrun: whole copies (ddp, auto) or shards (fsdp)
    activation_checkpointing: bool = False  # compute activations twice to keep fewer in memory
    ema: float | None = None  # decay of an average of the weights; None keeps none
    checkpoint_every: int = 200  # steps; 0 is only at the end
    validate_every: int = 0  # steps; 0 is only at the end
    log_every: int = 10  # steps
    keep: int = 2  # newest checkpoints kept
    workers: int = 0  # processes that load data; 0 loads in the training process
    threads: int | None = None  # of torch; None leaves its own choice
    data_errors: float = 0.01  # share of unreadable samples skipped before the run stops
    tensorboard: bool = False  # write TensorBoard events beside metrics.jsonl

    def __post_init__(self) -> None:
        require(self.steps >= 1, "trainer.steps", self.steps, "a whole number >= 1")
        require(0 <= self.seed < 2**63, "trainer.seed", self.seed, "a whole number from 0 to 2^63 - 1")
        require(self.accumulation >= 1, "trainer.accumulation", self.accumulation, "a whole number >= 1")
        require(self.keep >= 2, "trainer.keep", self.keep, "a whole number >= 2 (one may be torn when the power goes)")
        require(self.log_every >= 1, "trainer.log_every", self.log_every, "a whole number >= 1")
        require(self.workers >= 0, "trainer.workers", self.workers, "a whole number >= 0")
        require(self.checkpoint_every >= 0, "trainer.checkpoint_every", self.checkpoint_every, "a whole number >= 0")
        require(self.validate_every >= 0, "trainer.validate_every", self.validate_every, "a whole number >= 0")
        require(self.threads is None or self.threads >= 1, "trainer.threads", self.threads, "None or a number >= 1")
        require(0 <= self.data_errors < 1, "trainer.data_errors", self.data_errors, "a share in [0, 1)")
        require(self.ema is None or 0 <= self.ema < 1, "trainer.ema", self.ema, "None or a number in [0, 1)")


@dataclass(frozen=True)
class Recipe:
    """Base of every recipe's configuration: a wing adds its own fields and says how they make a task."""

    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def make_task(self) -> Task:
        raise TypeError(f"{type(self).__name__} does not say how to make its task")

"""Configuration: nested frozen dataclasses, each beside the component that it configures.

A recipe is a plain function that returns an instance of a `Recipe` subclass; the command line turns that instance's
fields into flags. The resolved configuration is written into the run folder, and `from_dict` rebuilds it from there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tenfold.engine.schedule import Schedule
from tenfold.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from tenfold.engine.task import Task

T = TypeVar("T")


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raises UsageError `name = value: allowed ...` unless `ok`; used by every `__post_init__`."""
    if not ok:
        raise UsageError(f"{name} = {value!r}: allowed {allowed}.")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedules.

    `lr` is the peak; `schedule` gives its shape (its own `peak` multiplies `lr`, so 1.0 is the usual choice).
    `weight_decay` applies to matrices; norms, biases, gains and whatever the task exempts get none.
    `layer_decay` multiplies the rate of block i of n by `layer_decay ** (n - i)` (see Task.parameter_depth).
    `clip` is the largest gradient norm; `clip_per_module` applies it to each child of the model alone.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.04
    weight_decay_end: float | None = None
    schedule: Schedule = field(default_factory=lambda: Schedule(kind="cosine", warmup=0.05, final=0.02))
    layer_decay: float = 1.0
    clip: float | None = 3.0
    clip_per_module: bool = False

    def __post_init__(self) -> None:
        require(math.isfinite(self.lr) and self.lr > 0, "optim.lr", self.lr, "a number above 0")
        require(all(0 <= b < 1 for b in self.betas), "optim.betas", self.betas, "two numbers in [0, 1)")
        require(self.eps > 0, "optim.eps", self.eps, "a number above 0")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "a number >= 0")
        require(0 < self.layer_decay <= 1, "optim.layer_decay", self.layer_decay, "a number in (0, 1]")
        require(self.clip is None or self.clip > 0, "optim.clip", self.clip, "None or a number above 0")


@dataclass(frozen=True)
class TrainerConfig:
    """How a run runs; what it learns is the task's business.

    `checkpoint_every` and `validate_every` count steps; 0 means only at the end. `keep` is the number of newest
    checkpoints kept (at least 2). `data_errors` is the share of unreadable samples that a run skips before it stops.
    """

    steps: int = 1000
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    accumulation: int = 1
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    activation_checkpointing: bool = False
    ema: float | None = None
    checkpoint_every: int = 200
    validate_every: int = 0
    log_every: int = 10
    keep: int = 2
    workers: int = 0
    threads: int | None = None
    data_errors: float = 0.01
    tensorboard: bool = False

    def __post_init__(self) -> None:
        require(self.steps >= 1, "trainer.steps", self.steps, "a whole number >= 1")
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


def to_dict(config: Any) -> Any:
    """A configuration as plain JSON values (paths become strings, tuples lists)."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, (list, tuple)):
        return [to_dict(item) for item in config]
    if isinstance(config, dict):
        return {str(key): to_dict(value) for key, value in config.items()}
    return str(config) if isinstance(config, Path) else config


def from_dict(kind: type[T], values: dict[str, Any], where: str = "") -> T:
    """Rebuilds the dataclass `kind` from `to_dict`'s output; an unknown field names the nearest one."""
    hints = typing.get_type_hints(kind)
    names = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    built = {}
    for name, value in values.items():
        if name not in names:
            raise unknown_name(f"field of {where or kind.__name__}", name, names)
        built[name] = _convert(hints[name], value, f"{where}.{name}" if where else name)
    return kind(**built)


def config_hash(config: Any) -> str:
    """SHA-256 of the configuration's canonical JSON."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [a for a in args if a is not type(None)]
        exact = [a for a in options if isinstance(a, type) and type(value) is a]
        shaped = [a for a in options if (typing.get_origin(a) in (tuple, list)) == isinstance(value, (tuple, list))]
        return _convert((exact or shaped or options)[0], value, where)
    if origin is Literal:
        if value not in args:
            raise unknown_name(f"value of {where}", str(value), map(str, args))
        return value
    if origin in (tuple, list):
        inner = args if origin is tuple and Ellipsis not in args else [args[0]] * len(value)
        if not isinstance(value, (list, tuple)) or len(inner) != len(value):
            raise UsageError(f"{where} = {value!r}: expected {len(inner)} values.")
        return origin(_convert(a, v, where) for a, v in zip(inner, value))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise UsageError(f"{where} = {value!r}: expected the fields of {hint.__name__}.")
        return from_dict(hint, value, where)
    if hint is Path:
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and not isinstance(value, hint):
        raise UsageError(f"{where} = {value!r}: expected {hint.__name__}, got {type(value).__name__}.")
    return value

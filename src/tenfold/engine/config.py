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
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from tenfold.engine.schedule import Schedule
from tenfold.errors import FieldError, UsageError, nearest, unknown_name

if TYPE_CHECKING:
    from tenfold.engine.task import Task

T = TypeVar("T")


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raises FieldError `name = value: allowed ...` unless `ok`; used by every `__post_init__`. NaN and infinity are never
    allowed, whatever the comparison says of them."""
    if not ok or not _finite(value):
        raise FieldError(name, value, allowed)


def _finite(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_finite(part) for part in value)
    return not isinstance(value, float) or math.isfinite(value)


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


@dataclass(frozen=True)
class TrainerConfig:
    """How a run runs; what it learns is the task's business.

    `checkpoint_every` and `validate_every` count steps; 0 means only at the end. `keep` is the number of newest
    checkpoints kept (at least 2). `precision` bf16 keeps fp32 weights and runs the matrix products in bf16; auto does so
    where the device has units for it (on a processor without them bf16 is many times slower). `data_errors` is the
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


def to_dict(config: Any) -> Any:
    """A configuration as plain JSON values (paths become strings, tuples lists)."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, (list, tuple)):
        return [to_dict(item) for item in config]
    if isinstance(config, dict):
        return {str(key): to_dict(value) for key, value in config.items()}
    return str(config) if isinstance(config, Path) else config


def from_dict(kind: type[T], values: Any, where: str = "") -> T:
    """Rebuilds the dataclass `kind` from `to_dict`'s output; `where` is the dotted place that errors name.

    Raises UsageError for an unknown field (naming the nearest), an absent one, a wrong type (True is no number, 2.0 no
    whole number, NaN no number at all), and whatever the dataclass itself refuses.
    """
    if not isinstance(values, dict):
        raise FieldError(where or kind.__name__, values, f"the fields of {kind.__name__}")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    built = {}
    for name, value in values.items():
        if name not in fields:
            raise unknown_name(f"field of {where or kind.__name__}", str(name), fields)
        built[name] = _convert(hints[name], value, f"{where}.{name}" if where else name)
    for name, described in fields.items():
        if name not in built and described.default is described.default_factory is dataclasses.MISSING:
            raise UsageError(f"{where or kind.__name__} lacks its field {name!r}: {spell(hints[name])}.")
    try:
        return kind(**built)
    except FieldError as error:
        raise (error.under(where) if where else error) from None


def config_hash(config: Any) -> str:
    """SHA-256 of the configuration's canonical JSON."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()


def spell(hint: Any) -> str:
    """What a field of this type takes, in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return spell(args[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(spell(option) for option in args)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is tuple and Ellipsis not in args:
        return f"{len(args)} values, each {' / '.join(dict.fromkeys(map(spell, args)))}"
    if origin in (tuple, list):
        return f"any number of values, each {spell(args[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    if hint is type(None) or hint is None:
        return "None"
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return f"the fields of {hint.__name__}"
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _convert(args[0], value, where)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is Literal:
        if not any(value == allowed and type(value) is type(allowed) for allowed in args):
            guess = nearest(str(value), map(str, args))
            raise FieldError(where, value, spell(hint) + (f" (did you mean {guess!r}?)" if guess else ""))
        return value
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise FieldError(where, value, spell(hint))
        inner = args if origin is tuple and Ellipsis not in args else [args[0]] * len(value)
        if len(inner) != len(value):
            raise FieldError(where, value, spell(hint))
        return origin(_convert(a, v, where) for a, v in zip(inner, value))
    if origin is dict:
        if not isinstance(value, dict):
            raise FieldError(where, value, "names with values")
        return {key: _convert(args[1], inner, f"{where}.{key}") for key, inner in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value, where)
    return _convert_plain(hint, value, where)


def _convert_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    """The option whose type is the value's own comes first: 1 is steps and 1.0 a fraction in `int | float`."""
    first = [option for option in options if type(value) is option]
    for option in [*first, *options]:
        try:
            return _convert(option, value, where)
        except UsageError:
            if dataclasses.is_dataclass(option) and isinstance(value, dict):
                raise  # its own message names the field inside
    names = [
        str(name) for option in options if typing.get_origin(option) is Literal for name in typing.get_args(option)
    ]
    guess = nearest(value, names) if isinstance(value, str) else None
    raise FieldError(where, value, " or ".join(map(spell, options)) + (f" (did you mean {guess!r}?)" if guess else ""))


def _convert_plain(hint: Any, value: Any, where: str) -> Any:
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if hint is float and type(value) in (int, float):
        if not math.isfinite(value):
            raise FieldError(where, value, "a finite number")
        return float(value)
    if hint in (int, bool, str) and type(value) is hint:
        return value
    if hint in (int, float, bool, str, Path) or (isinstance(hint, type) and not isinstance(value, hint)):
        raise FieldError(where, value, spell(hint))
    return value

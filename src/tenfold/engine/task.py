"""Task: what a system gives the trainer. It never owns a loop.

    build() ------------------> nn.Module            everything trainable, and frozen teachers
    batches(shard) -----------> Loader               endless, stateful, this rank's share of every global batch
    training_step(...) -------> {"loss": ..., ...}   named scalar losses and their weighted sum `loss`
    after_step(model, step) --> None                 EMA teachers, Gram refresh
    validate(model) ----------> {"knn": 46.6, ...}   numbers, each beside its baseline
    deliver(model) -----------> {name: Tensor}       what is saved as the final weights

What the trainer does to a model for memory and for several devices, it asks the task; the defaults suit most:

    layers(model) ------------> [nn.Module]          what is recomputed and sharded one by one: modules marked `is_layer`
    building(place) ----------> context of `build`   in which a rank makes its own part of a model: here the whole one
    parallelize(model, place) -> None                splits what data parallelism leaves whole: here nothing

Parameters with sparse row gradients are named by their modules (engine/row_gradients.py), not by the task.

The trainer wraps `build()`'s module for data parallelism, so `training_step` reaches parameters through one call of
`model(...)` per phase; attributes of the module itself are on `unwrap(model)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from tenfold.engine.parallel import Collectives, Place
from tenfold.engine.schedule import OptimConfig, Schedule


@dataclass(frozen=True)
class Shard:
    """This process's place among the data-parallel ranks. One process is rank 0 of 1."""

    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class Phase:
    """One optimizer and the parameters it moves (names that start with one of `prefixes`).

    Most systems have one phase. Adversarial training has two (generator, discriminator), taken in order every step.
    """

    name: str = "main"
    prefixes: tuple[str, ...] = ("",)
    optim: OptimConfig | None = None


@runtime_checkable
class Batches(Protocol):
    """An endless stream of batches whose position can be saved and restored exactly."""

    def __iter__(self) -> Iterator[Any]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Task:
    """Base class. `hparams` holds live values: the trainer sets those of `schedules` before each step, and
    population-based training may set any of them. `ranks` are the collectives of the data-parallel ranks, set by the
    trainer before `build`; alone it is the identity."""

    phases: tuple[Phase, ...] = (Phase(),)
    schedules: Mapping[str, Schedule] = {}

    def __init__(self) -> None:
        self.hparams: dict[str, float] = {}
        self.ranks = Collectives()

    def build(self) -> nn.Module:
        """The module to train, in its initial state (the trainer has seeded torch). Frozen teachers are part of it."""
        raise TypeError(f"{type(self).__name__} does not build a model")

    def building(self, place: Place) -> AbstractContextManager[None]:
        """Surrounds `build` in the trainer. A model too large for one rank is made in parts here."""
        return nullcontext()

    def parallelize(self, model: nn.Module, place: Place) -> None:
        """Called on every rank after `build` and before the model is wrapped for data parallelism."""

    def layers(self, model: nn.Module) -> list[nn.Module]:
        """The modules that activation checkpointing runs again in the backward, and that FSDP shards, one by one: by
        default all whose class is marked `is_layer = True`, as the transformer block is."""
        return [module for module in model.modules() if getattr(module, "is_layer", False)]

    def batches(self, shard: Shard) -> Batches:
        """This rank's stream. The union over ranks of one step's batches is the global batch, for any world size."""
        raise TypeError(f"{type(self).__name__} has no data")

    def training_step(self, model: nn.Module, batch: Any, phase: Phase) -> dict[str, Tensor]:
        """Named scalar losses of this rank's batch; `loss` is what is differentiated. Mean semantics: the trainer
        averages gradients and reported values over ranks and accumulation."""
        raise TypeError(f"{type(self).__name__} has no training step")

    def after_backward(self, model: nn.Module, phase: Phase, step: int) -> None:
        """Runs on the gradients of step `step` (0-based), before they are clipped: what is frozen for a while."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """Runs after the optimizers of step `step` (0-based) have moved the parameters."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Numbers on held-back data. Called on every rank; rank 0's result is recorded."""
        return {}

    def deliver(self, model: nn.Module) -> dict[str, Tensor]:
        """The final weights, in tenfold's own layout."""
        return {name: value for name, value in unwrap(model).state_dict().items() if isinstance(value, Tensor)}

    def deliver_more(self, model: nn.Module) -> dict[str, tuple[dict[str, Tensor], tuple[str, Any]]]:
        """Further weights of a run that trains several models: {name: (tensors, card)}, saved as `final-NAME`."""
        return {}

    def parameter_depth(self, name: str) -> tuple[int, int] | None:
        """(layer, layers) of a parameter for layer-wise decay; None when it takes the full rate."""
        return None

    def parameter_scale(self, name: str, parameter: nn.Parameter) -> tuple[float, float]:
        """(rate multiplier, decay multiplier) of a parameter: by default no decay on vectors and scalars."""
        return 1.0, 0.0 if parameter.ndim < 2 else 1.0

    def clip_group(self, name: str) -> str:
        """The sub-module whose gradients are clipped together with this parameter's (`optim.clip_per_module`)."""
        return name.partition(".")[0]

    def card(self) -> tuple[str, Any]:
        """What `tenfold.load` needs to know of the delivered weights: the kind of model and its configuration."""
        return type(self).__name__, {}

    def state_dict(self) -> dict[str, Any]:
        """JSON values that the task needs to resume beyond the module's own tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""


def unwrap(model: nn.Module) -> nn.Module:
    """The task's own module, without a data-parallel wrapper."""
    inner = getattr(model, "module", None)
    return inner if isinstance(inner, nn.Module) else model

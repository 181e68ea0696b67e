"""check_task passes a small real task and fails each way of breaking a promise, for that reason."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tenfold.engine.conformance import check_task
from tenfold.engine.recipe import Recipe
from tenfold.engine.schedule import Schedule, constant
from tenfold.engine.task import Phase, Shard, Task

ROWS, WIDTH, BATCH = 40, 3, 4


class Lines:
    """Points on a noisy line, each batch drawn by its number alone; a rank takes every world-th sample."""

    def __init__(self, shard: Shard) -> None:
        self.shard, self.step = shard, 0

    def draw(self, step: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(BATCH, WIDTH, generator=generator)
        mine = slice(self.shard.rank, None, self.shard.world)
        return {"x": x[mine], "y": x[mine].sum(1), "views": x.expand(2, -1, -1)[:, mine], "step": step}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            self.step += 1
            yield self.draw(self.step - 1)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


class Fit(Task):
    """Fits the line by least squares."""

    schedules = {"weight": Schedule("cosine", final=0.5)}

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 1))

    def batches(self, shard: Shard) -> Any:
        return Lines(shard)

    def training_step(self, model: nn.Module, batch: Any, phase: Phase) -> dict[str, Tensor]:
        error = (model(batch["x"])[:, 0] - batch["y"]).square().mean()
        return {"error": error.detach(), "loss": error * self.hparams["weight"]}


@dataclass(frozen=True)
class FitRecipe(Recipe):
    """Says which class makes the task."""

    kind: Callable[[], Any] = Fit

    def make_task(self) -> Any:
        return self.kind()


def test_a_sound_task_passes_and_leaves_torchs_generator_alone() -> None:
    before = torch.random.get_rng_state()
    check_task(FitRecipe())
    assert torch.equal(torch.random.get_rng_state(), before)


class Forgetful(Fit):
    def __init__(self) -> None:
        pass


class WildHparam(Fit):
    def __init__(self) -> None:
        super().__init__()
        self.hparams["width"] = math.nan


class NanSchedule(Schedule):
    def at(self, step: int, total: int) -> float:
        return math.nan if step else 1.0


class WildSchedule(Fit):
    schedules = {"weight": NanSchedule()}


class OwnDice(Fit):
    """Weights from a generator that the seed does not reach."""

    def build(self) -> nn.Module:
        model = super().build()
        generator = torch.Generator()
        generator.seed()
        nn.init.normal_(model[0].weight, generator=generator)  # type: ignore[arg-type]
        return model


class NamesThatChange(Fit):
    count = itertools.count()

    def build(self) -> nn.Module:
        return nn.ModuleDict({f"layer{next(self.count)}": nn.Linear(WIDTH, 1)})


class Ahead(Lines):
    """Counts what it has prepared instead of what it has given, as a loader with prefetching easily does."""

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step + 1}


class Stuck(Lines):
    def draw(self, step: int) -> dict[str, Any]:
        return super().draw(0)


class Undivided(Lines):
    """Every rank takes the whole batch."""

    def __init__(self, shard: Shard) -> None:
        super().__init__(Shard())


class Overlapping(Lines):
    """Both ranks take the same half."""

    def __init__(self, shard: Shard) -> None:
        super().__init__(Shard(0, shard.world))


class Mismatched(Lines):
    """The ranks' labels belong to one another's samples: each leaf is right, the pairs are not."""

    def draw(self, step: int) -> dict[str, Any]:
        other = Lines(Shard(self.shard.world - 1 - self.shard.rank, self.shard.world))
        return {**super().draw(step), "y": other.draw(step)["y"]}


def streaming(stream: type) -> type:
    return type(f"Fit{stream.__name__}", (Fit,), {"batches": lambda self, shard: stream(shard)})


def stepping(change: Callable[[dict[str, Tensor]], Any]) -> type:
    def training_step(self: Fit, model: nn.Module, batch: Any, phase: Phase) -> Any:
        return change(Fit.training_step(self, model, batch, phase))

    return type("FitStep", (Fit,), {"training_step": training_step})


class Unreached(Fit):
    """A parameter that no loss depends on."""

    def build(self) -> nn.Module:
        model = super().build()
        model.register_parameter("token", nn.Parameter(torch.zeros(3)))
        return model


class HalfMoved(Fit):
    phases = (Phase("first", ("0.",)),)


class Crossed(Fit):
    """The second phase's loss does not depend on what that phase moves."""

    phases = (Phase("first", ("0.",)), Phase("second", ("2.",)))

    def training_step(self, model: nn.Module, batch: Any, phase: Phase) -> dict[str, Tensor]:
        if phase.name == "second":
            return {"loss": model[0](batch["x"]).mean()}  # type: ignore[index]
        return super().training_step(model, batch, phase)


class WildGradient(Fit):
    def training_step(self, model: nn.Module, batch: Any, phase: Phase) -> dict[str, Tensor]:
        zero = (model(batch["x"]) * 0).square().sum()
        return {"loss": zero.sqrt()}  # 0, with an infinite slope


class DeliversList(Fit):
    def deliver(self, model: nn.Module) -> Any:
        return {"weight": [1.0, 2.0]}


class DeliversNothing(Fit):
    def deliver(self, model: nn.Module) -> dict[str, Tensor]:
        return {}


class DeliversNan(Fit):
    def deliver(self, model: nn.Module) -> dict[str, Tensor]:
        return {"weight": torch.tensor([math.nan])}


class DeliversHalved(Fit):
    def deliver(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: value.mul_(0.5) for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (object, "make_task\\(\\) returned a object, not a Task"),
        (Forgetful, "does not call super"),
        (WildHparam, "hparams\\['width'\\] = nan is not a finite number"),
        (WildSchedule, "schedules\\['weight'\\] is nan at step"),
        (OwnDice, "not the same twice with one seed: 0.weight$"),
        (NamesThatChange, "other names the second time"),
        (streaming(Ahead), "batch 0 after load_state_dict is not the one"),
        (streaming(Stuck), "the same batch twice"),
        (streaming(Undivided), "do not join to it"),
        (streaming(Overlapping), "two ranks' samples are not those"),
        (streaming(Mismatched), "two ranks' samples are not those"),
        (stepping(lambda losses: losses["loss"]), "returned a Tensor, not a dict"),
        (stepping(lambda losses: {"error": losses["loss"]}), "returned no 'loss', only error"),
        (stepping(lambda losses: {"loss": losses["loss"][None]}), "not a scalar tensor"),
        (stepping(lambda losses: {**losses, "error": 3.0}), "'error' is float, not a scalar tensor"),
        (stepping(lambda losses: {"loss": losses["loss"] * math.inf}), "'loss' = inf is not finite"),
        (stepping(lambda losses: {"loss": losses["loss"].detach()}), "'loss' has no gradient"),
        (Unreached, "in phase 'main' no gradient reaches token$"),
        (HalfMoved, "no phase moves 2.bias, 2.weight"),
        (Crossed, "in phase 'second' no gradient reaches 2.bias, 2.weight"),
        (WildGradient, "the gradient is not finite of 0.bias"),
        (DeliversList, "deliver\\(\\)\\['weight'\\] is a list, not a Tensor"),
        (DeliversNothing, "gives nothing"),
        (DeliversNan, "is not finite"),
        (DeliversHalved, "changes the model"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_promise_fails_for_its_reason(kind: Any, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_task(FitRecipe(kind=kind))


def test_parameters_may_be_named_that_stay_without_a_gradient() -> None:
    check_task(FitRecipe(kind=Unreached), without_gradient=["token"])
    with pytest.raises(AssertionError, match="'tokens' fits no parameter"):
        check_task(FitRecipe(kind=Unreached), without_gradient=["token", "tokens"])


def test_a_constant_schedule_passes() -> None:
    check_task(FitRecipe(kind=type("FitConstant", (Fit,), {"schedules": {"weight": constant(1.0)}})))

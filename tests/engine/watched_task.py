"""A small task for tests of the trainer's hooks: marked layers, a table with sparse row gradients, and a list of what ran."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.engine.parallel import Place
from tenfold.engine.recipe import Recipe, TrainerConfig
from tenfold.engine.schedule import OptimConfig
from tenfold.engine.task import Phase, Shard, Task
from tenfold.engine.trainer import Trainer


class Layer(nn.Module):
    """A layer of another wing: marked, and no transformer block."""

    is_layer = True

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x).tanh()


class Words(nn.Module):
    """An embedding with sparse gradients, which torch has by itself; it says so and inherits nothing of tenfold."""

    row_gradients = ("weight",)
    split, replicas = 1, None

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def placed(self, tensor: Tensor) -> Tensor:
        return tensor

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight, sparse=True)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.layers = Words(), nn.ModuleList(Layer() for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for layer in self.layers:
            x = layer(x)
        return x


class Stream:
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield torch.tensor([1, 3, 3])

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Watched(Task):
    """It writes down which hook ran."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def building(self, place: Place) -> AbstractContextManager[None]:
        @contextmanager
        def around() -> Iterator[None]:
            self.seen.append("before build")
            yield
            self.seen.append("after build")

        return around()

    def build(self) -> nn.Module:
        self.seen.append("build")
        return Model()

    def parallelize(self, model: nn.Module, place: Place) -> None:
        self.seen.append(f"parallelize {type(model).__name__}")

    def batches(self, shard: Shard) -> Stream:
        return Stream()

    def training_step(self, model: nn.Module, batch: Any, phase: Phase) -> dict[str, Tensor]:
        return {"loss": model(batch).square().mean()}


@dataclass(frozen=True)
class WatchedRecipe(Recipe):
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(steps=2, device="cpu"))
    optim: OptimConfig = field(default_factory=OptimConfig)


def fit(task: Watched, out: Path, **options: Any) -> Any:
    """The trainer after its run; its model is Any, as nn.Module's attributes are."""
    recipe = WatchedRecipe(trainer=TrainerConfig(steps=2, device="cpu", **options))
    trainer = Trainer(task, recipe, out)
    trainer.fit()
    return trainer

"""Hooks of a task: what the trainer does to a model for memory and for several devices, it asks for; it knows no system."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tenfold.engine
from tenfold.engine.optim import PhaseOptimizer
from tenfold.engine.parallel import Place
from tenfold.engine.recipe import Recipe, TrainerConfig
from tenfold.engine.row_gradients import row_tables, stored_values
from tenfold.engine.schedule import OptimConfig
from tenfold.engine.task import Phase, Shard, Task
from tenfold.engine.trainer import Trainer
from tenfold.nn.attention import AttentionConfig
from tenfold.nn.block import Block, BlockConfig
from tenfold.nn.ffn import GeluFFN


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


def test_hooks_run_in_order_around_build(tmp_path: Path) -> None:
    task = Watched()
    fit(task, tmp_path)
    assert task.seen == ["before build", "build", "after build", "parallelize Model"]


def test_marked_layers_run_again_in_the_backward_and_learn_the_same(tmp_path: Path) -> None:
    kept, again = (fit(Watched(), tmp_path / str(on), activation_checkpointing=on) for on in (False, True))
    assert [layer.calls for layer in kept.model.layers] == [2, 2]
    assert [layer.calls for layer in again.model.layers] == [4, 4]
    for ours, theirs in zip(kept.model.state_dict().values(), again.model.state_dict().values()):
        assert ours.equal(theirs)


def test_transformer_blocks_are_layers_and_what_holds_them_is_not() -> None:
    blocks = nn.ModuleList(Block(BlockConfig(AttentionConfig(8, 2)), GeluFFN(8, 16)) for _ in range(3))
    assert Task().layers(nn.Sequential(nn.Linear(8, 8), nn.Sequential(*blocks))) == list(blocks)


def test_any_module_may_name_parameters_with_row_gradients(tmp_path: Path) -> None:
    """RowAdamW moves the rows that were read and no other; a marked table of AdamW would decay all of them."""
    torch.manual_seed(TrainerConfig().seed)
    start = Model().words.weight.detach().clone()
    trainer = fit(Watched(), tmp_path)
    weight = trainer.model.words.weight
    assert set(row_tables(trainer.model)) == {weight}
    moved = (weight != start).any(1)
    assert moved.tolist() == [False, True, False, True, False, False]


def test_stored_values_of_a_row_gradient_hold_every_row_once() -> None:
    model = Model()
    assert stored_values(model.words.weight) is None
    model(torch.tensor([3, 1, 3])).sum().backward()
    dense = model.words.weight.grad.to_dense()  # type: ignore[union-attr]
    values = stored_values(model.words.weight)
    assert values is not None
    torch.testing.assert_close(values, dense[[1, 3]])
    optimizer = PhaseOptimizer(model, Task(), Phase(), OptimConfig(clip=None))
    squares = sum(float(p.grad.to_dense().square().sum()) for p in model.parameters())  # type: ignore[union-attr]
    assert optimizer.clip(Place(0, 1, torch.device("cpu"))) == pytest.approx(squares**0.5)


@pytest.mark.parametrize("name", ["trainer", "parallel", "optim", "guard", "task", "checkpoint", "run_folder"])
def test_the_engine_imports_no_model(name: str) -> None:
    tree = ast.parse(Path(tenfold.engine.__path__[0], f"{name}.py").read_text())
    found = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    systems = ("tenfold.nn", "tenfold.engine.memory_parallel", "tenfold.vision", "tenfold.language")
    assert not [module for module in found if module.startswith(systems)]

"""Sparse row gradients: any module may name its parameters, every stored row is there once, one process keeps its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.watched_task import Model, Watched, fit
from tenfold.engine.optim import PhaseOptimizer
from tenfold.engine.parallel import Place
from tenfold.engine.recipe import TrainerConfig
from tenfold.engine.row_gradients import average_rows, row_tables, stored_values
from tenfold.engine.schedule import OptimConfig
from tenfold.engine.task import Phase, Task

ALONE = Place(0, 1, torch.device("cpu"))


def test_one_process_keeps_its_gradient_as_it_is() -> None:
    model = Model()
    average_rows(model.words.weight, model.words, ALONE)
    assert model.words.weight.grad is None
    model(torch.tensor([3, 1, 3])).sum().backward()
    own = model.words.weight.grad
    average_rows(model.words.weight, model.words, ALONE)
    assert model.words.weight.grad is own


def test_only_what_a_module_names_is_a_table() -> None:
    model = Model()
    assert row_tables(model) == {model.words.weight: model.words}
    assert row_tables(model.layers) == {}
    dense = model.get_parameter("layers.0.linear.weight")
    dense.grad = torch.ones(4, 4)
    assert stored_values(dense) is dense.grad


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

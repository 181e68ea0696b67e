"""The guard against numbers that are not finite: a captured step runs again with the same numbers, and names what was bad."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tenfold.engine.checkpoint import random_state
from tenfold.engine.guard import capture, move, nonfinite_gradients, replay
from tenfold.engine.parallel import Place
from tenfold.engine.task import Task
from tenfold.errors import CheckpointError, NonFiniteError

CPU = torch.device("cpu")
ALONE = Place(0, 1, CPU)


class Root(Task):
    """The square root of a network with dropout, which is not a number where the network is negative."""

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1))

    def training_step(self, model: nn.Module, batch: Any, phase: object) -> dict[str, Tensor]:
        y = model(batch["x"])
        return {"loss": y.sqrt().mean() * self.hparams["scale"], "size": y.square().mean()}


def captured(folder: Path) -> tuple[NonFiniteError, dict[str, float]]:
    """A step that went wrong is captured: the error that ends the run, and the step's losses."""
    torch.manual_seed(0)
    task = Root()
    task.hparams["scale"] = 3.0
    model, batches = task.build(), [{"x": torch.randn(6, 3)} for _ in range(2)]
    before = random_state(ALONE)
    losses = {"loss": 0.0, "size": 0.0}
    for batch in batches:
        found = task.training_step(model, batch, task.phases[0])
        (found["loss"] / 2).backward()
        losses = {name: losses[name] + float(value.detach()) / 2 for name, value in found.items()}
    error = capture(
        folder, ALONE, model, task=task, phase=task.phases[0], step=12, random=before, batches=batches, losses=losses,
        autocast=None,
    )  # fmt: skip
    return error, losses


def test_a_captured_step_runs_again_with_the_same_numbers(tmp_path: Path) -> None:
    _, losses = captured(tmp_path)
    torch.manual_seed(99)  # weights and dropout come from the capture
    again = replay(tmp_path / "nonfinite-step-12", Root(), ALONE)
    assert again["gradients"] == ["1.weight", "1.bias"]
    assert math.isnan(again["losses"]["loss"])
    assert again["losses"]["size"] == losses["size"]
    summary = json.loads((tmp_path / "nonfinite-step-12/summary.json").read_text())
    assert (summary["step"], summary["phase"], summary["gradients"]) == (12, "main", again["gradients"])


def test_the_error_names_what_is_not_finite_and_how_to_see_it_again(tmp_path: Path) -> None:
    error, _ = captured(tmp_path)
    with pytest.raises(
        NonFiniteError, match=r"step 12: the loss \(loss\) is not finite\. The weights were not changed"
    ):
        raise error
    assert f"tenfold train --replay {tmp_path / 'nonfinite-step-12'};" in str(error)


def test_gradients_are_named_where_the_losses_are_finite(tmp_path: Path) -> None:
    task = Root()
    model = task.build()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    error = capture(
        tmp_path, ALONE, model, task=task, phase=task.phases[0], step=3, random=random_state(ALONE), batches=[],
        losses={"loss": 1.0}, autocast=None,
    )  # fmt: skip
    assert "step 3: 2 gradients (1.weight, 1.bias, ...) is not finite" in str(error)


def test_a_capture_of_other_ranks_or_a_folder_that_is_none_says_what_to_do(tmp_path: Path) -> None:
    captured(tmp_path)
    with pytest.raises(CheckpointError, match=r"captured on 1 ranks and this is 2\. Type: torchrun --nproc-per-node 1"):
        replay(tmp_path / "nonfinite-step-12", Root(), Place(0, 2, CPU))
    with pytest.raises(CheckpointError, match=r"is not a capture: it has no rank-0\.pt"):
        replay(tmp_path, Root(), ALONE)


class Touch:
    """Unpickling this creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.mkdir, (self.path,)


def test_a_hostile_capture_runs_nothing(tmp_path: Path) -> None:
    for content in (pickle.dumps(Touch(tmp_path / "touched"), protocol=2), b"", b"PK"):
        (tmp_path / "rank-0.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"rank-0\.pt cannot be read"):
            replay(tmp_path, Root(), ALONE)
    assert not (tmp_path / "touched").exists()


def test_dense_and_sparse_gradients_are_looked_at_and_absent_ones_are_not() -> None:
    model = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in ("good", "bad", "absent", "rows")})
    model["good"].weight.grad = torch.ones(2, 2)
    model["bad"].weight.grad = torch.tensor([[0.0, 1.0], [-math.inf, 0.0]])
    rows = torch.tensor([[1.0, math.nan]])
    model["rows"].weight.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), rows, (2, 2), check_invariants=True)
    assert nonfinite_gradients(model) == ["bad.weight", "rows.weight"]


def test_moving_a_batch_keeps_its_shape_and_everything_else() -> None:
    batch = {"x": torch.ones(2), "nested": [(torch.zeros(1), "name"), 3, None]}
    moved = move(batch, torch.device("meta"))
    assert moved["x"].device.type == moved["nested"][0][0].device.type == "meta"
    assert isinstance(moved["nested"][0], tuple)
    assert moved["nested"][0][1:] + tuple(moved["nested"][1:]) == ("name", 3, None)

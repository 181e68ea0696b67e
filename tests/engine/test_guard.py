"""The guard against numbers that are not finite: a captured step runs again with the same numbers, and names what was bad."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tenfold.engine.checkpoint import random_state
from tenfold.engine.guard import capture, move, nonfinite_gradients, replay, stopped
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


def captured(folder: Path, place: Place = ALONE) -> tuple[Path, dict[str, float], list[str]]:
    """A step that went wrong, captured; its losses and the parameters whose gradient is not finite."""
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
    bad = nonfinite_gradients(model)
    where = capture(folder, place, model, task, task.phases[0], 12, before, batches, losses, bad, None)
    return where, losses, bad


def test_a_captured_step_runs_again_with_the_same_numbers(tmp_path: Path) -> None:
    folder, losses, bad = captured(tmp_path)
    assert folder == tmp_path / "nonfinite-step-12"
    assert bad == ["1.weight", "1.bias"]
    torch.manual_seed(99)  # weights and dropout come from the capture
    again = replay(folder, Root(), ALONE)
    assert again["gradients"] == bad
    assert math.isnan(again["losses"]["loss"])
    assert again["losses"]["size"] == losses["size"]


def test_a_capture_of_other_ranks_or_a_folder_that_is_none_says_what_to_do(tmp_path: Path) -> None:
    folder, _, _ = captured(tmp_path, Place(0, 2, CPU))
    with pytest.raises(CheckpointError, match=r"captured on 2 ranks and this is 1\. Type: torchrun --nproc-per-node 2"):
        replay(folder, Root(), ALONE)
    with pytest.raises(CheckpointError, match=r"is no capture: it has no rank-0\.pt"):
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


@pytest.mark.parametrize(
    ("losses", "gradients", "said"),
    [
        ({"loss": math.nan, "dino": 1.0, "ibot": math.inf}, ["w"], r"step 3: the loss \(loss, ibot\) is not finite"),
        ({"loss": 1.0}, ["a", "b", "c", "d"], r"step 3: 4 gradients \(a, b, c, \.\.\.\) is not finite"),
    ],
)
def test_the_error_names_what_is_not_finite_and_how_to_see_it_again(
    losses: dict[str, float], gradients: list[str], said: str
) -> None:
    error = stopped(Path("run/nonfinite-step-3"), 3, losses, gradients)
    assert isinstance(error, NonFiniteError)
    with pytest.raises(NonFiniteError, match=said + r".*tenfold train --replay run/nonfinite-step-3"):
        raise error

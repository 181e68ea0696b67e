"""The trainer's loop: a resumed run has the bits of a straight one, accumulated batches are one, the average is delivered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tenfold.data.tensors import read_safetensors
from tenfold.engine.recipe import Recipe, TrainerConfig
from tenfold.engine.schedule import OptimConfig, Schedule
from tenfold.engine.task import Phase, Shard, Task
from tenfold.engine.trainer import Trainer


class Numbers:
    """Batch t is drawn from t: the stream is its position."""

    def __init__(self, rows: int) -> None:
        self.rows, self.at = rows, 0

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            rows = [torch.randn(3, generator=torch.Generator().manual_seed(self.at + i)) for i in range(self.rows)]
            self.at += self.rows
            yield torch.stack(rows)

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


class Cut(Exception):
    pass


class Line(Task):
    """Fits x -> sum(x) with noise on the inputs, which comes from torch's own generator."""

    schedules = {"noise": Schedule("linear", peak=0.1, final=0.0)}

    def __init__(self, rows: int, noisy: bool = True, cut_at: int = -1) -> None:
        super().__init__()
        self.rows, self.noisy, self.cut_at = rows, noisy, cut_at
        self.weights: list[Tensor] = []
        self.noise: list[float] = []

    def build(self) -> nn.Module:
        return nn.Linear(3, 1)

    def batches(self, shard: Shard) -> Numbers:
        return Numbers(self.rows)

    def training_step(self, model: nn.Module, batch: Tensor, phase: Phase) -> dict[str, Tensor]:
        if len(self.weights) == self.cut_at:
            raise Cut
        noise = self.hparams["noise"]
        self.noise.append(noise)
        x = batch + noise * torch.randn_like(batch) if self.noisy else batch
        return {"loss": (model(x)[:, 0] - batch.sum(1)).square().mean()}

    def after_step(self, model: nn.Module, step: int) -> None:
        self.weights.append(model.get_parameter("weight").detach().clone())

    def validate(self, model: nn.Module) -> dict[str, float]:
        return {"distance": float((model.get_parameter("weight") - 1).abs().sum())}


@dataclass(frozen=True)
class LineRecipe(Recipe):
    """Trains `Line`, which each test makes itself."""


def recipe(**options: Any) -> LineRecipe:
    optim = OptimConfig(lr=0.05, weight_decay=0.0, schedule=Schedule("constant"))
    return LineRecipe(TrainerConfig(device="cpu", **options), optim)


def delivered(out: Path) -> dict[str, Tensor]:
    return read_safetensors(out / "final.safetensors")[0]


def test_a_run_that_was_cut_resumes_with_the_bits_of_a_straight_one(tmp_path: Path) -> None:
    plan = recipe(steps=6, checkpoint_every=2)
    straight = Trainer(Line(4), plan, tmp_path / "straight").fit()
    with pytest.raises(Cut):
        Trainer(Line(4, cut_at=5), plan, tmp_path / "cut").fit()
    again = Trainer(Line(4), plan, tmp_path / "cut", resume=True)
    assert again.fit() == straight
    assert len(again.task.weights) == 2  # the two steps behind the last checkpoint  # type: ignore[attr-defined]
    ours, theirs = delivered(tmp_path / "cut"), delivered(tmp_path / "straight")
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_accumulated_batches_make_the_steps_of_their_union(tmp_path: Path) -> None:
    Trainer(Line(4, noisy=False), recipe(steps=3), tmp_path / "one").fit()
    Trainer(Line(2, noisy=False), recipe(steps=3, accumulation=2), tmp_path / "two").fit()
    one, two = delivered(tmp_path / "one"), delivered(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-6)


def test_what_is_delivered_and_scored_is_the_average_of_the_weights(tmp_path: Path) -> None:
    task = Line(4)
    torch.manual_seed(0)
    average = nn.Linear(3, 1).weight.detach().clone()
    scores = Trainer(task, recipe(steps=4, ema=0.5, validate_every=2), tmp_path).fit()
    for weight in task.weights:
        average = 0.5 * average + 0.5 * weight
    torch.testing.assert_close(delivered(tmp_path)["weight"], average)
    assert scores["distance"] == pytest.approx(float((average - 1).abs().sum()), rel=1e-5)


def test_live_values_follow_their_schedule_and_every_step_that_is_due_is_logged(tmp_path: Path) -> None:
    task = Line(4)
    Trainer(task, recipe(steps=5, log_every=2, validate_every=2), tmp_path).fit()
    assert task.noise == [task.schedules["noise"].at(step, 5) for step in range(5)]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 4, 5]
    assert [row["step"] for row in rows if "distance" in row] == [2, 4, 5]

"""The tour asks the trainer for its seconds per step, and reads a run's curves from its metrics."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tenfold.language.models.config import LlamaConfig
from tenfold.language.pretraining.pretrain import PretrainRecipe
from tenfold.tour.runs import seconds_per_step, train, with_trainer


def small(tmp_path: Path) -> PretrainRecipe:
    text = tmp_path / "text.txt"
    text.write_text("All work and no play makes a small corpus for a test.\n" * 200)
    model = LlamaConfig(256, 16, 32, 1, heads=2, kv_heads=2, context=16, tied=True)
    recipe = PretrainRecipe(data=text, batch=2, length=16, model=model, val_tokens=64)
    return with_trainer(recipe, threads=1)


def test_seconds_per_step_are_the_trainers_and_leave_nothing_behind(tmp_path: Path) -> None:
    recipe = small(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert 0 < seconds_per_step("lm", recipe) < 60
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_replaces_an_earlier_one_and_has_its_curves(tmp_path: Path) -> None:
    recipe = small(tmp_path)
    train("lm", recipe, tmp_path / "run", steps=4, validations=2)
    run = train("lm", recipe, tmp_path / "run", steps=8, validations=2)
    assert run.metrics["steps"] == 8
    assert [step for step, _ in run.curve("nats_per_byte")] == [4, 8]
    assert [step for step, _ in run.curve("loss")] == [1, 5, 8]
    assert run.curve("nothing") == []
    assert dataclasses.asdict(recipe.trainer)["steps"] == 1000  # the caller's recipe is as it was

"""`tenfold bench trainer`: what the trainer costs over a bare loop with the same model, data and optimizer.

Both take a step in turns inside one run. The bare loop is what one writes by hand: batch, forward, backward, clip, step,
teacher; no guard, log, schedules of live values, signals or random state.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from tenfold.bench.table import on_threads, ratio
from tenfold.engine.step_memory import autocast_type
from tenfold.engine.task import Shard
from tenfold.engine.trainer import Trainer
from tenfold.vision.recipes import dinov3_mini

STEPS, WARMUP = 40, 5


class _Bare:
    """The loop by hand."""

    def __init__(self, recipe: Any) -> None:
        self.task = recipe.make_task()
        self.task.hparams.update({name: s.at(0, STEPS) for name, s in self.task.schedules.items()})
        torch.manual_seed(0)
        self.model = self.task.build().train()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.04, fused=True)
        self.parameters, self.clip = parameters, recipe.optim.clip
        self.batches = iter(self.task.batches(Shard()))
        self.autocast = autocast_type(recipe.trainer.precision, torch.device("cpu"))

    def step(self, number: int) -> None:
        self.optimizer.zero_grad()
        batch = next(self.batches)
        with torch.autocast("cpu", self.autocast, enabled=self.autocast is not None):
            loss = self.task.training_step(self.model, batch, self.task.phases[0])["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.task.after_step(self.model, number)


class _InTurns(Trainer):
    """A trainer that lets the bare loop take a step before each of its own, and times both."""

    def __init__(self, *args: Any, bare: _Bare, **options: Any) -> None:
        super().__init__(*args, **options)
        self.bare = bare
        self.bare_seconds: list[float] = []
        self.own_seconds: list[float] = []

    def _step(self, batches: Iterator[Any]) -> str:
        start = perf_counter()
        self.bare.step(self.step)
        middle = perf_counter()
        stop = super()._step(batches)
        self.bare_seconds.append(middle - start)
        self.own_seconds.append(perf_counter() - middle)
        return stop

    def _record(self) -> None:
        start = perf_counter()
        super()._record()
        self.own_seconds[-1] += perf_counter() - start


def run() -> dict[str, Any]:
    with on_threads(1):
        recipe = dinov3_mini()
        trainer = dataclasses.replace(recipe.trainer, steps=STEPS, checkpoint_every=0, validate_every=0, device="cpu")
        recipe = dataclasses.replace(recipe, trainer=trainer, val_rows=20)
        with tempfile.TemporaryDirectory() as folder:
            timed = _InTurns(recipe.make_task(), recipe, Path(folder) / "run", bare=_Bare(recipe))
            timed.fit()
    bare, own = timed.bare_seconds[WARMUP:], timed.own_seconds[WARMUP:]
    middle, low, high = ratio(bare, own)
    milliseconds = [1000 * sorted(side)[len(side) // 2] for side in (bare, own)]
    return {
        "title": "Step of dinov3-mini: the trainer over a bare loop",
        "rows": [
            {"side": "bare loop", "ms a step (median)": milliseconds[0]},
            {"side": "trainer", "ms a step (median)": milliseconds[1]},
            {"side": "trainer / bare loop", "ms a step (median)": middle},
        ],
        "notes": [
            f"ratio pair by pair: median {middle:.3f}, from {low:.3f} to {high:.3f}, {len(own)} pairs, one thread; "
            "the mark is 1.05, the limit 1.",
        ],
    }

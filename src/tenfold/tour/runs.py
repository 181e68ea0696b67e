"""Training runs of the tour: as many steps as fit into the seconds that a panel has, by the trainer's own seconds per step."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from tenfold.engine.metrics import read_rows
from tenfold.engine.recipe import Recipe
from tenfold.tour.page import say
from tenfold.training import run_recipe

PROBE = 6  # steps of the run that is asked for its speed; the first two warm up
AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


@dataclass(frozen=True)
class TourRun:
    """A finished run: its folder, the last figures, its steps, and the lines of its metrics.jsonl."""

    folder: Path
    metrics: dict[str, Any]
    steps: int
    rows: list[dict[str, Any]]

    def curve(self, name: str) -> list[tuple[float, float]]:
        """(step, value) wherever `name` was logged as a number."""
        return [(row["step"], row[name]) for row in self.rows if isinstance(row.get(name), int | float)]


def seconds_per_step(name: str, recipe: Recipe) -> float:
    """Median of what the trainer reports for a few steps of this recipe on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "probe"
        run_recipe(name, with_trainer(recipe, steps=PROBE, log_every=1, validate_every=0, checkpoint_every=0), run)
        return median(
            row["seconds"] for row in read_rows(run / "metrics.jsonl") if row.get("seconds") and row["step"] > 2
        )


def train(name: str, recipe: Recipe, out: Path, steps: int, validations: int) -> TourRun:
    """Trains into the folder `out` (an earlier run there is replaced)."""
    say(f"training {out.name} for {steps} steps")
    shutil.rmtree(out, ignore_errors=True)
    every = max(1, steps // validations)
    chosen = with_trainer(recipe, steps=steps, validate_every=every, checkpoint_every=0, log_every=5)
    metrics = run_recipe(name, chosen, out)
    return TourRun(out, metrics, steps, read_rows(out / "metrics.jsonl"))


def with_trainer(recipe: AnyRecipe, **changes: Any) -> AnyRecipe:
    """The recipe with other trainer settings."""
    return dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, **changes))

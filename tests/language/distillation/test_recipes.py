"""Recipes of drafters come back from their run folder, and each differs from the first only where it says so."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tenfold.config import from_dict, to_dict
from tenfold.language.distillation.distill import DrafterRecipe
from tenfold.language.distillation.recipes import (
    eagle1_smollm2,
    eagle3_smoke,
    eagle3_smollm2,
    eagle3_smollm2_2layer,
)

DIFFERENT: dict[Callable[[], DrafterRecipe], set[str]] = {
    eagle3_smollm2: set(),
    eagle3_smollm2_2layer: {"drafter"},
    eagle1_smollm2: {"drafter", "optim"},
    eagle3_smoke: {"trainer", "target", "rollouts", "drafter", "distill"},
}


@pytest.mark.parametrize("build", DIFFERENT)
def test_a_recipe_comes_back_from_json_and_changes_only_what_it_says(build: Callable[[], DrafterRecipe]) -> None:
    saved = to_dict(build())
    assert from_dict(DrafterRecipe, json.loads(json.dumps(saved))) == build()
    base = to_dict(eagle3_smollm2())
    assert {name for name in base if base[name] != saved[name]} == DIFFERENT[build]

"""The training recipes of the wing: their sizes, how the stages follow one another, and that a run folder keeps them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tenfold.config import from_dict, to_dict
from tenfold.registry import recipes
from tenfold.vision.backbones.vit import VIT_CONFIGS, VitConfig
from tenfold.vision.recipes import (
    dinov2,
    dinov3,
    dinov3_gram,
    dinov3_highres,
    dinov3_mini,
    dinov3_mini_24,
    dinov3_mini_memory,
)

OWN = [entry.name for entry in recipes if entry.target.startswith("tenfold.vision.")]


@pytest.mark.parametrize("name", OWN)
def test_a_recipe_survives_the_run_folder_that_holds_it(name: str) -> None:
    recipe = recipes.load(name)()
    assert from_dict(type(recipe), to_dict(recipe)) == recipe


@pytest.mark.parametrize("name", OWN)
def test_rates_of_a_recipe_rise_to_their_peak_and_end_at_their_last_value(name: str) -> None:
    recipe = recipes.load(name)()
    schedule, total = recipe.optim.schedule, recipe.trainer.steps
    values = [schedule.at(step, total) for step in range(0, total + 1, max(1, total // 500))]
    assert max(values) <= schedule.peak + 1e-9
    assert min(values) >= min(schedule.start, schedule.final) - 1e-9
    assert schedule.at(total, total) == pytest.approx(schedule.peak if schedule.kind == "constant" else schedule.final)


def test_the_papers_sizes_have_their_parameters_and_their_stages_chain() -> None:
    assert dinov3("7b").model.dim == 4096
    giant = dinov2("g").model
    assert isinstance(giant, VitConfig)
    assert giant.ffn == "swiglu"
    gram = dinov3_gram("l")
    assert gram.gram.weight.at(0, 20_000) == 0.0
    assert gram.gram.weight.at(1000, 20_000) == pytest.approx(2.0)
    assert gram.objective.local.at(1000, 20_000) == pytest.approx(0.5)


@pytest.mark.parametrize("size", ["t", "s", "7b"])
def test_a_later_stage_has_the_network_and_the_heads_that_the_earlier_one_leaves(size: Any) -> None:
    stages = [build(size) for build in (dinov3, dinov3_gram, dinov3_highres)]
    assert len({(stage.model, stage.dino, stage.ibot) for stage in stages}) == 1
    assert [stage.gram.active for stage in stages] == [False, True, True]
    assert [stage.start is not None for stage in stages] == [False, True, True]
    assert sum(mix[3] for mix in stages[2].resolutions) == pytest.approx(1.0)
    patch = stages[2].model.patch_size
    assert all(mix[0] % patch == mix[2] % patch == 0 for mix in stages[2].resolutions)  # where patches are masked


@pytest.mark.parametrize("build", [dinov2, dinov3])
def test_crops_are_whole_patches_and_the_network_is_the_released_one(build: Callable[..., Any]) -> None:
    for size in ("s", "b", "l"):
        recipe = build(size)
        crops, patch = recipe.crops, recipe.model.patch_size
        assert crops.global_size % patch == crops.local_size % patch == 0
        released = VIT_CONFIGS[f"{build.__name__}-{size}"]
        assert (recipe.model.dim, recipe.model.depth, patch) == (released.dim, released.depth, released.patch_size)


def test_variants_of_the_small_recipe_differ_in_their_network_alone() -> None:
    plain = to_dict(dinov3_mini())
    for build, fields in (
        (dinov3_mini_memory, {"memory_layers", "memory_side"}),
        (dinov3_mini_24, {"ffn", "sparsity"}),
    ):
        other = to_dict(build())
        assert {name for name in plain if plain[name] != other[name]} == {"model"}
        model = plain["model"]
        assert {name for name in model if model[name] != other["model"][name]} <= fields

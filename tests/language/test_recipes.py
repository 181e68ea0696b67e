"""Recipes of language models: they come back from JSON, kinds of one size are comparable, every size is a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tenfold.config import from_dict, to_dict
from tenfold.language.models.llama import Llama
from tenfold.language.pretraining.pretrain import PretrainRecipe
from tenfold.language.recipes import (
    lm_memory_peer,
    lm_memory_pkm,
    lm_memory_plus,
    lm_moe_top1,
    lm_relu2_24,
    lm_relu2_dense,
    lm_swiglu_dense,
)
from tenfold.nn.memory import MemoryLayer

PLAIN = [lm_swiglu_dense, lm_relu2_dense, lm_relu2_24, lm_moe_top1]
EVERY: list[Callable[..., PretrainRecipe]] = [*PLAIN, lm_memory_plus, lm_memory_pkm, lm_memory_peer]
SIZES: list[Any] = ["tiny", "small", "base"]


def parameters(recipe: PretrainRecipe) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Llama(recipe.model).parameters())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("build", EVERY)
def test_a_recipe_comes_back_from_its_run_folder(build: Callable[..., PretrainRecipe], size: Any) -> None:
    recipe = build(size)
    assert from_dict(PretrainRecipe, json.loads(json.dumps(to_dict(recipe)))) == recipe
    assert recipe.length == recipe.model.context


@pytest.mark.parametrize("size", SIZES)
def test_swiglu_and_squared_relu_have_the_same_number_of_parameters(size: Any) -> None:
    dense = parameters(lm_relu2_dense(size))
    assert parameters(lm_swiglu_dense(size)) == pytest.approx(dense, rel=1e-3)
    assert parameters(lm_relu2_24(size)) == dense
    assert parameters(lm_moe_top1(size)) > 2 * dense


@pytest.mark.parametrize("size", SIZES)
def test_kinds_of_one_size_see_the_same_text_in_the_same_steps(size: Any) -> None:
    streams = {(r.tokens, r.batch, r.length, r.trainer.steps, r.trainer.seed) for r in (build(size) for build in EVERY)}
    assert len(streams) == 1


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_every_size_describes_a_model_with_one_table(size: str) -> None:
    recipe = lm_memory_plus(size)  # type: ignore[arg-type]
    with torch.device("meta"):
        model = Llama(recipe.model)
    assert sum("memory.values" in name for name, _ in model.named_parameters()) == 1
    assert sum(isinstance(m, MemoryLayer) for m in model.modules()) == len(recipe.model.memory_layers)

"""Small runs with memory layers for tests: flags of the command line, and the same as a recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tenfold.engine.recipe import TrainerConfig
from tenfold.language.pretraining.fact_mixing import FactsConfig
from tenfold.language.pretraining.pretrain import PretrainRecipe

SMALL = [
    *("--trainer.steps", "3", "--trainer.device", "cpu", "--batch", "4", "--length", "24", "--val-tokens", "96"),
    *("--facts.kind", "world"),
    *("--facts.entities", "20", "--facts.asked", "20", "--model.dim", "16", "--model.hidden", "32"),
    *("--model.memory-side", "16", "--model.memory-top-k", "4", "--model.memory-key-dim", "8"),
]


def small(recipe: PretrainRecipe, text: Path) -> PretrainRecipe:
    model = dataclasses.replace(recipe.model, dim=16, hidden=32, memory_side=16, memory_top_k=4, memory_key_dim=8)
    return dataclasses.replace(
        recipe,
        trainer=TrainerConfig(steps=3, device="cpu"),
        model=model,
        data=text,
        batch=4,
        length=24,
        val_tokens=96,
        facts=FactsConfig(kind="world", entities=20, asked=20),
    )


def words(folder: Path) -> Path:
    """A text that is learnt in no time."""
    path = folder / "words.txt"
    path.write_text("the quick brown fox jumps over the lazy dog.\n" * 4000)
    return path

"""Facts mixed into pretraining text: which, how many, and what the model recalls of them.

    mixed = open_facts(FactsConfig("book", Path("factbook.parquet")), vocabulary, seed=0)
    mixed.rows(7, rows=8, length=97)             statements of batch 7, int64 (8, 97)
    mixed.scores(model)                          recall beside its baselines (fact_eval.py)

A batch is a function of its number and the seed, so a resumed run mixes in the same facts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch import nn

from tenfold.config import require
from tenfold.data.samples import fetch
from tenfold.errors import UsageError
from tenfold.language.models.text import ByteVocabulary, Vocabulary
from tenfold.language.pretraining.fact_eval import score_book, score_world
from tenfold.language.pretraining.factbook import FactBook, common, read_countries, read_factbook
from tenfold.language.pretraining.facts import LENGTH, FactWorld

LONGEST_TOKEN = 8  # bytes of a statement read for every token wanted; what is left over is cut off


@dataclass(frozen=True)
class FactsConfig:
    """Facts among the training text. `share` of each batch's rows are statements of facts."""

    kind: Literal["none", "world", "book", "countries"] = "none"  # world is generated, book parquet, countries a sample
    path: Path | None = None  # of the book: columns entity, field, text
    share: float = 0.5  # of the rows of a batch
    entities: int = 250  # of the generated world
    relations: int = 8  # of the generated world
    values: int = 512  # of the generated world
    asked: int = 500  # facts asked in a validation

    def __post_init__(self) -> None:
        require(0 < self.share < 1, "facts.share", self.share, "a share in (0, 1)")
        require(self.asked >= 1, "facts.asked", self.asked, "a whole number >= 1")
        if self.kind == "book" and self.path is None:
            raise UsageError("facts.kind = 'book' needs facts.path: a parquet with the columns entity, field, text.")


class MixedFacts:
    """Facts as rows of a batch. Generated ones have tokens of their own above the text's; others are text."""

    def __init__(self, facts: FactWorld | FactBook, vocabulary: Vocabulary, asked: int) -> None:
        self.facts, self.text, self.asked = facts, vocabulary, asked
        self.vocabulary = facts.vocabulary if isinstance(facts, FactWorld) else vocabulary.size

    def rows(self, number: int, rows: int, length: int) -> np.ndarray:
        """Sequences of batch `number`, int64 (rows, length): the same for the same number."""
        facts = self.facts
        if isinstance(facts, FactWorld):
            return facts.batch(number * rows * -(-length // LENGTH), rows, length)
        if isinstance(self.text, ByteVocabulary):
            return facts.batch(number * rows, rows, length)
        made = facts.batch(number * rows, rows, length * LONGEST_TOKEN).astype(np.uint8)
        coded = [self.text.encode(row.tobytes().decode("utf-8", "ignore"))[:length] for row in made]
        return np.array([row + [0] * (length - len(row)) for row in coded], np.int64)

    def scores(self, model: nn.Module) -> dict[str, float]:
        """Figures of a validation, each beside its baseline (`floor`: the best score without the model)."""
        facts = self.facts
        if isinstance(facts, FactWorld):
            return {f"facts_{name}": value for name, value in score_world(model, facts, self.asked).items()}
        found = score_book(model, facts, self.text.encode, limit=self.asked)
        return {"facts_" + name.replace(", ", "_").replace(" ", "_"): value for name, value in found.items()}


def open_facts(config: FactsConfig, vocabulary: Vocabulary, seed: int) -> MixedFacts | None:
    """The facts that a configuration names; None without. Raises DataError for a file without them."""
    if config.kind == "none":
        return None
    if config.kind == "world":
        world = FactWorld(config.entities, config.relations, config.values, seed, first_token=vocabulary.size)
        return MixedFacts(world, vocabulary, config.asked)
    facts = read_countries(fetch("countryinfo")) if config.kind == "countries" else read_factbook(config.path or Path())
    return MixedFacts(FactBook(common(facts), seed), vocabulary, config.asked)

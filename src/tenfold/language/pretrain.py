"""Next-token training of a Llama on bytes of text, with facts mixed in where their recall is to be measured.

    tenfold train lm-memory-plus                                         on the Python standard library, minutes on a CPU
    tenfold train lm-memory-plus --data corpus.parquet --facts.kind book --facts.path factbook.parquet

Validation gives nats a byte on held-back documents, and the recall of facts beside its floors (fact_eval.py).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.data.samples import fetch
from tenfold.engine.config import Recipe, require
from tenfold.engine.task import Phase, Shard, Task, unwrap
from tenfold.errors import UsageError
from tenfold.language.fact_eval import score_book, score_world
from tenfold.language.factbook import FactBook, common, read_countries, read_factbook
from tenfold.language.facts import FactWorld
from tenfold.language.llama import Llama, LlamaConfig
from tenfold.language.text import Corpus, Windows, read_corpus

BYTES = 256


@dataclass(frozen=True)
class FactsConfig:
    """Facts among the training text. `share` of each batch's rows are statements of facts."""

    kind: Literal["none", "world", "book", "countries"] = (
        "none"  # world is generated, book a parquet, countries a sample
    )
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


@dataclass(frozen=True)
class MemoryConfig:
    """How a memory table is trained."""

    lr: float = 1e-2  # peak rate of the table, on the schedule of the rest
    group_size: int = 1  # ranks over which the table is split by width

    def __post_init__(self) -> None:
        require(self.lr > 0, "memory.lr", self.lr, "a number above 0")
        require(self.group_size >= 1, "memory.group_size", self.group_size, "a whole number >= 1")


@dataclass(frozen=True)
class PretrainRecipe(Recipe):
    """Next-token prediction on bytes."""

    model: LlamaConfig = field(default_factory=lambda: LlamaConfig(vocabulary=BYTES, dim=128, hidden=344, depth=3))
    data: Path | None = (
        None  # text: parquet with a column text, .txt, .gz or a folder; None is Python's standard library
    )
    batch: int = 16  # sequences, over all ranks
    length: int = 96  # tokens of a sequence
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    facts: FactsConfig = field(default_factory=FactsConfig)
    validation_rows: int = 128  # windows of held-back text

    def __post_init__(self) -> None:
        require(self.batch >= 1, "batch", self.batch, "a whole number >= 1")
        require(self.length >= 8, "length", self.length, "a whole number >= 8")
        require(self.validation_rows >= 1, "validation_rows", self.validation_rows, "a whole number >= 1")

    def make_task(self) -> PretrainTask:
        return PretrainTask(self)


class PretrainTask(Task):
    def __init__(self, recipe: PretrainRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.table_ranks = recipe.memory.group_size
        if self.table_ranks > 1 and recipe.model.memory_layers:
            _check_split(recipe.model, self.table_ranks)
        self._facts: FactWorld | FactBook | None = None
        self._corpus: Corpus | None = None

    @property
    def corpus(self) -> Corpus:
        if self._corpus is None:
            self._corpus = read_corpus(self.recipe.data)
        return self._corpus

    @property
    def facts(self) -> FactWorld | FactBook | None:
        """The facts mixed in, read at first use; None without."""
        if self._facts is None and self.recipe.facts.kind != "none":
            self._facts = open_facts(self.recipe.facts, self.recipe.trainer.seed)
        return self._facts

    @property
    def config(self) -> LlamaConfig:
        """The recipe's model, with a vocabulary that holds the tokens of the facts too."""
        c, facts = self.recipe.model, self.facts
        return dataclasses.replace(c, vocabulary=max(c.vocabulary, facts.vocabulary)) if facts is not None else c

    def build(self) -> nn.Module:
        return Llama(self.config)

    def batches(self, shard: Shard) -> Windows:
        r = self.recipe
        if r.batch % shard.world:
            raise UsageError(f"batch = {r.batch} does not divide by {shard.world} ranks.")
        rows = min(r.batch - 1, max(1, round(r.facts.share * r.batch))) if self.facts is not None else 0
        return Windows(
            self.corpus.train, r.batch, r.length + 1, r.trainer.seed, shard.rank, shard.world, self.facts, rows
        )  # fmt: skip

    def training_step(self, model: nn.Module, batch: Tensor, phase: Phase) -> dict[str, Tensor]:
        logits = model(batch[:, :-1]).logits
        return {"loss": F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())}

    def validate(self, model: nn.Module) -> dict[str, float]:
        r, inner = self.recipe, unwrap(model)
        scores = {"nats_per_byte": text_loss(inner, self.corpus.validation, r.length, r.validation_rows)}
        facts = self.facts
        if isinstance(facts, FactWorld):
            scores |= {f"facts_{name}": value for name, value in score_world(inner, facts, r.facts.asked).items()}
        elif facts is not None:
            found = score_book(inner, facts, limit=r.facts.asked)
            scores |= {"facts_" + name.replace(", ", "_").replace(" ", "_"): value for name, value in found.items()}
        return scores

    def parameter_scale(self, name: str, parameter: nn.Parameter) -> tuple[float, float]:
        if name.startswith("memory."):
            return self.recipe.memory.lr / self.recipe.optim.lr, 0.0
        return super().parameter_scale(name, parameter)

    def card(self) -> tuple[str, Any]:
        return "llama", self.config


def open_facts(config: FactsConfig, seed: int) -> FactWorld | FactBook:
    """The facts that a configuration names. Raises DataError for a file without them."""
    if config.kind == "world":
        return FactWorld(config.entities, config.relations, config.values, seed, first_token=BYTES)
    facts = read_countries(fetch("countryinfo")) if config.kind == "countries" else read_factbook(config.path or Path())
    return FactBook(common(facts), seed)


@torch.no_grad()
def text_loss(model: nn.Module, text: np.ndarray, length: int, rows: int) -> float:
    """Nats a byte over at most `rows` windows evenly spread over the text."""
    length = min(length, len(text) - 1)
    starts = np.unique(np.linspace(0, len(text) - length - 1, rows).astype(np.int64))
    device = next(model.parameters()).device
    windows = torch.from_numpy(np.stack([text[s : s + length + 1] for s in starts]).astype(np.int64))
    total = 0.0
    for batch in windows.split(64):
        batch = batch.to(device)
        logits = model(batch[:, :-1]).logits.float()
        total += float(F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"))
    return total / (len(windows) * length)


def _check_split(config: LlamaConfig, ranks: int) -> None:
    """Before any process group: what a split can never be."""
    divisors = ", ".join(str(n) for n in range(1, config.dim + 1) if config.dim % n == 0)
    require(config.dim % ranks == 0, "memory.group_size", ranks, f"a divisor of the table's width: {divisors}")
    if config.memory_variant == "peer":
        raise UsageError(
            "memory.group_size goes with the variants pkm and plus: an expert's first product needs whole rows."
        )


__all__ = ["FactsConfig", "MemoryConfig", "PretrainRecipe", "PretrainTask", "open_facts", "text_loss"]

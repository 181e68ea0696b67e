"""Pretraining of a Llama on text: next-token loss, dense or 2:4 sparse networks, memory layers, facts mixed in.

    tenfold train lm-relu2-24                                             bytes of the Python standard library
    tenfold train lm-memory-plus --size small --data corpus.parquet

Batch t is drawn from (seed, t), so the stream is its position and the same for any number of ranks. Losses are in nats
per token; validation is in nats per byte, so that vocabularies compare, beside the byte frequencies' own figure.

2:4 sparsity: arXiv 2503.16672. Memory layers: arXiv 2412.09764. Experts: arXiv 2101.03961.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.config import require
from tenfold.engine.memory_parallel import SplitTables
from tenfold.engine.recipe import Recipe
from tenfold.engine.task import Phase, Shard, unwrap
from tenfold.errors import CheckpointError, UsageError
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.language_model import LanguageModel, LanguageModelConfig
from tenfold.language.models.llama import initialise_by_width
from tenfold.language.models.text import ByteVocabulary, Vocabulary, check_vocabulary, read_documents, split, train_bpe
from tenfold.language.pretraining.evaluate_text import nats_per_byte, unigram_floor
from tenfold.language.pretraining.fact_mixing import FactsConfig, MixedFacts, open_facts
from tenfold.nn.ffn import ExpertFFN
from tenfold.nn.sparse24 import Sparsity24
from tenfold.nn.sparse_training import SparsityController

BALANCE = 0.01  # weight of the experts' load-balancing loss (arXiv 2101.03961, section 2.2)


@dataclass(frozen=True)
class MemoryConfig:
    """How the shared table of the memory layers learns."""

    lr: float = 1e-3  # peak rate of the table; its schedule has the shape of the rest's
    weight_decay: float = 0.0  # of the rows that a step reads
    group_size: int = 1  # ranks over which the table is split by width

    def __post_init__(self) -> None:
        require(self.lr > 0, "memory.lr", self.lr, "a number above 0")
        require(self.weight_decay >= 0, "memory.weight_decay", self.weight_decay, "a number >= 0")
        require(self.group_size >= 1, "memory.group_size", self.group_size, "a whole number >= 1")


@dataclass(frozen=True)
class PretrainRecipe(Recipe):
    """Next-token pretraining on text. Without --data: the sources and topics of Python's standard library."""

    data: Path | None = None  # parquet, a text file or a folder of them; None is the Python standard library
    column: str = "text"  # of parquet
    tokens: Literal["bytes", "bpe"] = "bytes"  # bpe trains a vocabulary of model.vocabulary tokens on the text
    batch: int = 16  # sequences per step, over all ranks
    length: int = 96  # tokens of a sequence
    model: LlamaConfig = field(default_factory=lambda: LlamaConfig(256, 128, 516, 3, 4, 4, context=96, tied=True))
    sparsity: Sparsity24 = field(default_factory=lambda: Sparsity24(warmup_steps=0.1))  # with model.sparsity 2:4
    memory: MemoryConfig = field(default_factory=MemoryConfig)  # with model.memory_layers
    facts: FactsConfig = field(default_factory=FactsConfig)  # facts mixed into the text
    val_tokens: int = 32768  # held-back tokens of a validation

    def __post_init__(self) -> None:
        require(self.batch >= 1, "batch", self.batch, "a whole number >= 1")
        require(self.length >= 2, "length", self.length, "a whole number >= 2")
        require(self.val_tokens >= self.length, "val_tokens", self.val_tokens, f"length = {self.length} or more")
        enough = self.model.vocabulary >= 257 or self.tokens == "bytes"
        require(enough, "model.vocabulary", self.model.vocabulary, "257 or more with tokens = bpe")

    def make_task(self) -> PretrainTask:
        return PretrainTask(self)


class PretrainTask(SplitTables):
    def __init__(self, recipe: PretrainRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        if recipe.model.memory_layers:
            self.table_ranks = recipe.memory.group_size
            _check_split(recipe.model, self.table_ranks)
        train, held_back = split(read_documents(recipe.data, recipe.column))
        self.vocabulary: Vocabulary = (
            ByteVocabulary() if recipe.tokens == "bytes" else train_bpe(train, recipe.model.vocabulary)
        )
        self.train, self.held_back = self.vocabulary.join(train), self.vocabulary.join(held_back)
        self.facts = open_facts(recipe.facts, self.vocabulary, recipe.trainer.seed)
        size = recipe.model.vocabulary
        if self.facts is not None:  # a vocabulary that holds the tokens of generated facts too
            size = max(size, self.facts.vocabulary)
        self.model = dataclasses.replace(recipe.model, vocabulary=size)
        check_vocabulary(self.vocabulary, recipe.model.vocabulary)
        for name, tokens in (("train on", self.train), ("hold back", self.held_back)):
            if len(tokens) <= recipe.length:
                raise UsageError(f"length = {recipe.length}: allowed is less than the {len(tokens)} tokens to {name}.")
        self.controller: SparsityController | None = None

    def build(self) -> nn.Module:
        model = LanguageModel(self.card()[1])
        initialise_by_width(model)
        if self.recipe.model.sparsity == "2:4":
            total = self.recipe.trainer.steps
            self.controller = SparsityController(model, self.recipe.sparsity, total, self._mean_over_ranks)
            self.controller.step(0)
        return model

    def _mean_over_ranks(self, value: Tensor) -> Tensor:
        return self.ranks.all_reduce_sum(value) / self.ranks.world

    def batches(self, shard: Shard) -> Windows:
        return Windows(self.recipe, self.train, self.facts, shard)

    def training_step(self, model: nn.Module, batch: Any, phase: Phase) -> dict[str, Tensor]:
        tokens = batch.long()
        logits = model(tokens[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        routers = [m for m in unwrap(model).modules() if isinstance(m, ExpertFFN)]
        if not routers:
            return {"loss": loss}
        balance = torch.stack([m.balance for m in routers if m.balance is not None]).mean()
        return {"loss": loss + BALANCE * balance, "text_loss": loss.detach(), "balance": balance}

    def after_step(self, model: nn.Module, step: int) -> None:
        if self.controller is not None:
            self.controller.step(step + 1)

    def validate(self, model: nn.Module) -> dict[str, float]:
        r = self.recipe
        tokens = torch.from_numpy(self.held_back[: r.val_tokens + 1].astype(np.int64))
        scores = {
            "nats_per_byte": nats_per_byte(model, tokens, self.vocabulary.widths, r.length),
            "floor": unigram_floor(self.train, self.held_back[: r.val_tokens + 1], self.vocabulary.widths),
        }
        if self.controller is not None:
            for name, stats in self.controller.stats().items():
                scores |= {f"{name}.zeros": stats.zeros, f"{name}.dropped": stats.features}
        return scores | (self.facts.scores(unwrap(model)) if self.facts else {})

    def parameter_scale(self, name: str, parameter: nn.Parameter) -> tuple[float, float]:
        if not name.startswith("memory."):
            return super().parameter_scale(name, parameter)
        memory, optim = self.recipe.memory, self.recipe.optim
        return memory.lr / optim.lr, memory.weight_decay / optim.weight_decay if optim.weight_decay else 0.0

    def card(self) -> tuple[str, LanguageModelConfig]:
        r = self.recipe
        return "language-model", LanguageModelConfig(self.model, self.vocabulary.save(), r.sparsity)

    def state_dict(self) -> dict[str, Any]:
        sparsity = self.controller.state_dict() if self.controller else None
        return {"text": hashlib.sha256(self.train.tobytes()).hexdigest(), "sparsity": sparsity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["text"] != hashlib.sha256(self.train.tobytes()).hexdigest():
            raise CheckpointError(
                f"the text is not what this run began with ({self.recipe.data or 'the Python standard library'}). "
                "Restore it, or start a new run."
            )
        if self.controller is not None:
            self.controller.load_state_dict(state["sparsity"])


class Windows:
    """Sequences of length + 1 tokens from random places, and statements of facts in the first rows of the global batch."""

    def __init__(self, recipe: PretrainRecipe, tokens: np.ndarray, facts: MixedFacts | None, shard: Shard) -> None:
        if recipe.batch % shard.world:
            raise UsageError(f"batch = {recipe.batch} does not divide by {shard.world} ranks.")
        self.recipe, self.tokens, self.facts, self.shard = recipe, tokens, facts, shard
        self.position = 0  # batches handed out

    def __iter__(self) -> Windows:
        return self

    def __next__(self) -> Tensor:
        r = self.recipe
        rows = np.empty((r.batch, r.length + 1), np.int64)
        mixed = min(r.batch - 1, max(1, round(r.facts.share * r.batch))) if self.facts else 0
        if self.facts and mixed:
            rows[:mixed] = self.facts.rows(self.position, mixed, r.length + 1)
        draws = np.random.default_rng((r.trainer.seed, self.position))
        for row, start in zip(rows[mixed:], draws.integers(len(self.tokens) - r.length, size=r.batch - mixed)):
            row[:] = self.tokens[start : start + r.length + 1]
        self.position += 1
        # Rank r takes every w-th row, so that each has its share of facts.
        return torch.from_numpy(rows[self.shard.rank :: self.shard.world].copy())

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = int(state["position"])


def _check_split(config: LlamaConfig, ranks: int) -> None:
    """What a split can never be, before any process group is made."""
    if ranks == 1:
        return
    divisors = ", ".join(str(n) for n in range(1, config.dim + 1) if config.dim % n == 0)
    require(config.dim % ranks == 0, "memory.group_size", ranks, f"a divisor of the table's width: {divisors}")
    if config.memory_variant == "peer":
        raise UsageError(
            "memory.group_size goes with the variants pkm and plus: an expert's first product needs whole rows."
        )

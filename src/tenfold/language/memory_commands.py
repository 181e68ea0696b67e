"""`tenfold language memory` and `tenfold eval facts | factbook`: use of a memory table, and recall of facts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from jaxtyping import Float
from torch import Tensor, nn

from tenfold.config import from_dict
from tenfold.errors import CheckpointError, UsageError
from tenfold.export.weights import load
from tenfold.language.models.text import read_documents, split
from tenfold.language.pretraining.fact_eval import score_book, score_world
from tenfold.language.pretraining.fact_mixing import open_facts
from tenfold.language.pretraining.factbook import FactBook, common, read_factbook
from tenfold.language.pretraining.facts import FactWorld
from tenfold.language.pretraining.pretrain import PretrainRecipe
from tenfold.nn.memory import MemoryLayer
from tenfold.nn.memory_usage import MemoryUsage


@dataclass(frozen=True)
class Memory:
    """How a run's memory table is used: slots read, how evenly, the most read, and what a prompt reads.

    $ tenfold language memory runs/lm-memory-plus
    $ tenfold language memory runs/lm-memory-plus --prompt "def main():"
    """

    run: tyro.conf.Positional[Path]  # a run folder with memory layers
    prompt: str | None = None  # a text whose reads are shown, token by token
    top: int = 10  # slots shown
    rows: int = 64  # windows of held-back text that are read
    json: bool = False  # print as JSON


def memory(options: Memory) -> None:
    result = examine(options)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['slots']:,} slots; {result['coverage']:.1%} read by {result['tokens']:,} tokens of held-back text")
    for name, share in result["layers"].items():
        print(f"  {name:<20} {share:.1%}")
    print(f"divergence from even use: {result['divergence']:.2f} nats (0 even, {result['largest']:.2f} a single slot)")
    print("most read: " + "  ".join(f"{slot} ({share:.2%})" for slot, share in result["most read"]))
    for row in result.get("prompt", []):
        print(f"{row['token']!r:>8}  " + "  ".join(f"{slot} ({weight:.2f})" for slot, weight in row["slots"]))


def examine(options: Memory) -> dict[str, Any]:
    """The figures that `tenfold language memory` prints."""
    model, recipe = open_run(options.run)
    held_back = model.vocabulary.join(split(read_documents(recipe.data, recipe.column))[1])
    starts = np.unique(np.linspace(0, len(held_back) - recipe.length, options.rows).astype(int))
    windows = torch.from_numpy(np.stack([held_back[s : s + recipe.length] for s in starts]).astype(np.int64))
    with torch.no_grad(), MemoryUsage(model) as usage:
        model(windows)
    slots, shares = usage.most_read(options.top)
    result: dict[str, Any] = {
        "slots": usage.weight.shape[1],
        "tokens": windows.numel(),
        "coverage": usage.coverage,
        "layers": usage.layer_coverage,
        "divergence": usage.divergence,
        "largest": math.log(usage.weight.shape[1]),
        "most read": list(zip(slots.tolist(), shares.tolist())),
    }
    if options.prompt is not None:
        ids = model.vocabulary.encode(options.prompt)
        if not ids:
            raise UsageError("--prompt is empty: allowed is a text of at least one character.")
        reads = token_reads(model, ids)
        rows = []
        for id_, own in zip(ids, reads):
            weight, slot = own.topk(min(options.top, len(own)))
            rows.append({"token": model.vocabulary.decode([id_]), "slots": list(zip(slot.tolist(), weight.tolist()))})
        result["prompt"] = rows
    return result


@torch.no_grad()
def token_reads(model: nn.Module, ids: Sequence[int]) -> Float[Tensor, "n k"]:
    """The weight that every slot has for each token of a text, over all memory layers and heads."""
    layers = [module for module in model.modules() if isinstance(module, MemoryLayer)]
    reads = torch.zeros(len(ids), layers[0].table.slots)

    def count(layer: MemoryLayer, inputs: tuple[Tensor, ...]) -> None:
        index, weight = (part.flatten(1) for part in layer.lookup(inputs[0].reshape(-1, layer.dim)))
        reads.scatter_add_(1, index, weight.to(reads.dtype))

    handles = [layer.register_forward_pre_hook(count) for layer in layers]
    try:
        model(torch.tensor([list(ids)]))
    finally:
        for handle in handles:
            handle.remove()
    return reads


@dataclass(frozen=True)
class Facts:
    """Recall of the generated facts that a run was trained on, beside facts that it never saw."""

    weights: tyro.conf.Positional[Path]  # the run folder
    limit: int = 2000  # facts of each kind that are asked for
    json: bool = False  # print as JSON


@dataclass(frozen=True)
class Book:
    """Recall of real facts, beside always saying the most common value of a field."""

    weights: tyro.conf.Positional[Path]  # the run folder
    val: Path | None = None  # parquet (columns entity, field, text) of the facts; those of the run by default
    limit: int = 1000  # facts that are asked for
    json: bool = False  # print as JSON


def facts(options: Facts) -> dict[str, Any]:
    """Recall of the generated facts that a run was trained on, in per cent, and of those that it never saw."""
    model, recipe = open_run(options.weights)
    if recipe.facts.kind != "world":
        raise UsageError(
            f"{options.weights} was trained with facts.kind = {recipe.facts.kind!r}; this task scores a generated world. "
            "Real facts: tenfold eval factbook."
        )
    mixed = open_facts(recipe.facts, model.vocabulary, recipe.trainer.seed)
    assert mixed is not None
    world = mixed.facts
    assert isinstance(world, FactWorld)
    scores = score_world(model, world, options.limit)
    return {
        "recall": scores["recall"],
        "recall of facts never trained (baseline)": scores["floor"],
        "facts trained": len(world.trained),
        "bits in them": world.bits,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def factbook(options: Book) -> dict[str, Any]:
    """Exact match and ranks of real facts: those of the run, or of the parquet in --val."""
    model, recipe = open_run(options.weights)
    book: Any = None
    if options.val is not None:
        book = FactBook(common(read_factbook(options.val)), recipe.trainer.seed)
    elif recipe.facts.kind in ("book", "countries"):
        mixed = open_facts(recipe.facts, model.vocabulary, recipe.trainer.seed)
        book = mixed.facts if mixed is not None else None
    if not isinstance(book, FactBook):
        raise UsageError(
            f"{options.weights} was not trained on real facts. Name a parquet with the columns entity, field, text: --val FILE."
        )
    return score_book(model, book, model.vocabulary.encode, options.limit)


def open_run(folder: Path) -> tuple[Any, PretrainRecipe]:
    """The model of a run and its recipe. Raises CheckpointError for a folder that is not a run of a language model."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text())["config"]
        recipe = from_dict(PretrainRecipe, values)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a run folder: it has no config.json.") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:  # a UsageError is a ValueError
        raise CheckpointError(f"{folder} is not a run of a language model (tenfold train lm-...): {error}") from None
    return load(folder), recipe

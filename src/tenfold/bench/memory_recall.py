"""`tenfold bench memory-recall`: how many generated facts a model recalls, with memory layers and without, at equal MACs.

    dense     Squared-ReLU network, widened so that a token costs within 2 % of the memory model's multiplications
    dense-2x  the same with twice the multiplications
    pkm, plus memory layers in blocks 2 and 4 of 4, one table

Every arm sees the same facts in the same order for as many steps; its rate is chosen once among the same three, by mean
recall over the run with seed 0 (at the end most know nearly all); `pkm` takes that of `plus`. Then three seeds. Facts are
FactWorld's (language/pretraining/facts.py), asked in a template that each was never trained in,
one statement to a sequence. At this size the facts fit the dense model too: this shows how fast they are learned and not
how many can be held.

An arm is a run folder in runs/memory-recall: a bench that was stopped continues with the arms that are missing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from time import process_time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.bench.table import on_threads
from tenfold.data.atomic import write_atomic
from tenfold.engine.recipe import Recipe, TrainerConfig
from tenfold.engine.schedule import OptimConfig, Schedule
from tenfold.engine.task import Phase, Shard, Task, unwrap
from tenfold.engine.trainer import Trainer
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.llama import Llama, initialise_by_width
from tenfold.language.pretraining.facts import LENGTH, FactWorld
from tenfold.nn.memory import MemoryLayer, centred_layers

FOLDER = Path("runs/memory-recall")
ARMS = ("dense", "dense-2x", "plus", "pkm")
RATES = (4e-3, 8e-3, 1.6e-2)
ENTITIES = 250  # of 8 facts each
SEEDS = (0, 1, 2)
DIM, DEPTH, HIDDEN = 64, 4, 256
LAYERS = centred_layers(DEPTH, 2)
MEMORY: dict[str, Any] = {"memory_side": 128, "memory_heads": 4, "memory_top_k": 16, "memory_key_dim": 32}
VALUES_RATE = 10 / 3  # rate of the table over that of the rest
ASKED = 2000  # questions of a validation
PASS = 0.30  # recall of the dense model at which the others are compared


@dataclass(frozen=True)
class RecallRecipe(Recipe):
    """One arm."""

    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(
            steps=240, device="cpu", validate_every=10, checkpoint_every=0, log_every=20
        )
    )
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, clip=1.0, schedule=Schedule("linear", warmup=0.05, final=0.01)
        )
    )
    arm: str = "dense"
    world: FactWorld = field(default_factory=lambda: FactWorld(entities=ENTITIES))
    rows: int = 256  # sequences of a batch, each one statement
    length: int = LENGTH - 1  # tokens of a sequence, without the last

    def make_task(self) -> RecallTask:
        return RecallTask(self)


class RecallTask(Task):
    def __init__(self, recipe: RecallRecipe) -> None:
        super().__init__()
        self.recipe = recipe

    def build(self) -> nn.Module:
        return build(self.recipe.arm, self.recipe.world.vocabulary)

    def batches(self, shard: Shard) -> _Statements:
        assert shard.world == 1, "the bench runs on one process"
        return _Statements(self.recipe)

    def training_step(self, model: nn.Module, batch: Any, phase: Phase) -> dict[str, Tensor]:
        logits = model(batch[:, :-1]).logits
        return {"loss": F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())}

    def validate(self, model: nn.Module) -> dict[str, float]:
        world = self.recipe.world
        known, unknown = world.trained[:: max(1, len(world.trained) // ASKED)], world.untrained[:ASKED]
        return {"recall": recall(model, world, known), "floor": recall(model, world, unknown)}

    def parameter_scale(self, name: str, parameter: nn.Parameter) -> tuple[float, float]:
        return (VALUES_RATE, 0.0) if name.startswith("memory.") else super().parameter_scale(name, parameter)


class _Statements:
    def __init__(self, recipe: RecallRecipe) -> None:
        self.recipe, self.position = recipe, 0

    def __iter__(self) -> _Statements:
        return self

    def __next__(self) -> Tensor:
        r = self.recipe
        tokens = r.world.batch(self.position, r.rows, r.length + 1)
        self.position += r.rows * -(-(r.length + 1) // LENGTH)
        return torch.from_numpy(tokens)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = int(state["position"])


def build(arm: str, vocabulary: int) -> Llama:
    """A Llama of 4 blocks whose feed-forward networks are the arm's."""
    hidden = matched_hidden(2.0 if arm == "dense-2x" else 1.0) if arm.startswith("dense") else HIDDEN
    if arm == "pkm":  # what `plus` spends on its projections goes into the blocks without memory
        hidden += DIM * len(LAYERS) // (DEPTH - len(LAYERS))
    sizes: dict[str, Any] = {"dim": DIM, "hidden": hidden, "depth": DEPTH, "heads": 4, "kv_heads": 4}
    memory = {"memory_layers": LAYERS, "memory_variant": arm, **MEMORY} if arm in ("pkm", "plus") else {}
    model = Llama(LlamaConfig(vocabulary=vocabulary, activation="relu2", **sizes, **memory))
    initialise_by_width(model, squared_gain=1.0)  # all arms alike, as suits the memory layers (docs/LOG.md)
    return model


def matched_hidden(factor: float) -> int:
    """Hidden units that give the blocks `factor` times the multiplications of `plus`, in steps of 4."""
    attention = 4 * DIM * DIM
    wanted = factor * blocks_macs(build("plus", 8)) / DEPTH - attention
    return round(wanted / (2 * DIM) / 4) * 4


def blocks_macs(model: Llama) -> int:
    """Multiplications of a token in the blocks: projections and feed-forward networks (scores of attention are alike in all
    arms and left out, which makes differences look larger)."""
    total = 0
    blocks: Any = model.blocks
    for block in blocks:
        ffn: nn.Module = block.ffn
        own = ffn.macs_per_token if isinstance(ffn, MemoryLayer) else sum(p.numel() for p in ffn.parameters())
        total += own + sum(m.weight.numel() for m in block.attention.modules() if isinstance(m, nn.Linear))
    return total


@torch.no_grad()
def recall(model: nn.Module, world: FactWorld, facts: Any) -> float:
    """Share of facts whose value is the likeliest next token."""
    prompts, answers = (torch.from_numpy(x) for x in world.questions(facts))
    right = [
        int((unwrap(model)(p).logits[:, -1].argmax(-1) == a).sum())
        for p, a in zip(prompts.split(500), answers.split(500))
    ]
    return sum(right) / len(answers)


def run() -> dict[str, Any]:
    with on_threads(1):
        tuned = ("dense", "dense-2x", "plus")
        chosen = {arm: max(RATES, key=lambda lr, arm=arm: mean(_arm(arm, lr, 0)["recall"].values())) for arm in tuned}
        chosen["pkm"] = chosen["plus"]
        runs = {arm: [_arm(arm, chosen[arm], seed) for seed in SEEDS] for arm in ARMS}
    return _table(chosen, runs)


def _arm(arm: str, lr: float, seed: int) -> dict[str, Any]:
    """The arm's results, from its folder or from a run of it."""
    folder = FOLDER / f"{arm}-{lr:g}-{seed}"
    results = folder / "results.json"
    if results.exists():
        return json.loads(results.read_text())
    recipe = RecallRecipe(arm=arm, world=FactWorld(entities=ENTITIES, seed=seed))
    recipe = dataclasses.replace(
        recipe,
        trainer=dataclasses.replace(recipe.trainer, seed=seed),
        optim=dataclasses.replace(recipe.optim, lr=lr),
    )
    start = process_time()
    Trainer(recipe.make_task(), recipe, folder, name=folder.name, resume=(folder / "config.json").exists()).fit()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    model = build(arm, recipe.world.vocabulary)
    found = {
        "recall": {row["step"]: row["recall"] for row in rows if "recall" in row},
        "floor": max(row["floor"] for row in rows if "floor" in row),
        "loss": [row["loss"] for row in rows if "loss" in row][-1],
        "macs": blocks_macs(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "cpu_seconds": process_time() - start,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "process": os.getpid(),
    }
    write_atomic(results, json.dumps(found, indent=2).encode())
    return json.loads(results.read_text())  # as it will be read again: JSON's keys are strings


def _final(found: dict[str, Any]) -> float:
    return list(found["recall"].values())[-1]


def _table(chosen: dict[str, float], runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    steps = list(runs["dense"][0]["recall"])
    dense = {step: mean(r["recall"][step] for r in runs["dense"]) for step in steps}
    at = next((step for step in steps if dense[step] >= PASS), steps[-1])
    rows, notes = [], []
    for arm, found in runs.items():
        here = [r["recall"][at] for r in found]
        rows.append(
            {
                "arm": arm,
                "MACs a token": found[0]["macs"],
                "over dense": found[0]["macs"] / runs["dense"][0]["macs"],
                "parameters": found[0]["parameters"],
                "rate": chosen[arm],
                f"recall, step {at}": mean(here),
                "sd": stdev(here),
                f"recall, step {steps[-1]}": mean(_final(r) for r in found),
                "floor": max(r["floor"] for r in found),
                "CPU s": mean(r["cpu_seconds"] for r in found),
            }
        )
        curve = "  ".join(f"{s}: {mean(r['recall'][s] for r in found):.2f}" for s in steps[1::2])
        notes.append(f"{arm}, recall by step: {curve}")
    plus = mean(r["recall"][at] for r in runs["plus"])
    for other, mark in (("dense", 1.3), ("dense-2x", 1.15)):
        ratio = plus / max(1e-9, mean(r["recall"][at] for r in runs[other]))
        notes.append(f"plus over {other} at step {at}: {ratio:.2f} (mark >= {mark})")
    recipe = RecallRecipe()
    notes.append(
        f"{recipe.world.facts:,} facts of {recipe.world.values} values, {recipe.trainer.steps} steps of {recipe.rows} "
        f"statements, seeds {SEEDS}, rates tried {RATES}; the baseline is recall on facts never trained"
    )
    return {"title": "Recall of generated facts at equal multiplications", "rows": rows, "notes": notes}

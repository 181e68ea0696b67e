"""A small real task for the tests of the engine: next-byte prediction on Shakespeare with the shared block.

    python tests/programs/byte_lm.py train byte-lm --out RUN --text FILE.gz --trainer.steps 20

The whole command line runs, in a process of its own, with one more recipe. Faults are fields of the recipe.
"""

from __future__ import annotations

import gzip
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.cli import main
from tenfold.engine.checkpoint import CheckpointStore
from tenfold.engine.memory_parallel import SplitTables
from tenfold.engine.parallel import Place
from tenfold.engine.recipe import Recipe, TrainerConfig
from tenfold.engine.schedule import OptimConfig
from tenfold.engine.task import Phase, Shard
from tenfold.nn.attention import AttentionConfig
from tenfold.nn.block import Block, BlockConfig
from tenfold.nn.ffn import GeluFFN
from tenfold.nn.memory import insert_memory
from tenfold.registry import recipes


@dataclass(frozen=True)
class ByteRecipe(Recipe):
    """Next-byte prediction."""

    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(steps=20, checkpoint_every=5, log_every=1, device="cpu")
    )
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=3e-3, layer_decay=0.9))
    text: Path = Path("text.gz")
    batch: int = 8
    length: int = 32
    width: int = 32
    drop_path: float = 0.2
    memory: bool = False  # the second block looks up a table
    table_ranks: int = 1  # over how many ranks the table is split
    adversary: bool = False  # a second phase: tell real bytes from the model's
    poison: Literal["none", "loss", "gradient", "sample"] = "none"
    poison_step: int = 3
    poison_rank: int = 0
    pause: float = 0.0  # seconds per step
    slow_validation: float = 0.0  # seconds

    def make_task(self) -> ByteTask:
        return ByteTask(self)


class Windows:
    """Batch t is drawn from (seed, t), so the stream is its position."""

    def __init__(self, recipe: ByteRecipe, shard: Shard) -> None:
        self.recipe, self.shard, self.position = recipe, shard, 0
        self.data = torch.frombuffer(bytearray(gzip.decompress(recipe.text.read_bytes())), dtype=torch.uint8).long()

    def __iter__(self) -> Windows:
        return self

    def __next__(self) -> dict[str, Any]:
        r = self.recipe
        generator = torch.Generator().manual_seed(self.position)
        starts = torch.randint(len(self.data) - r.length - 1, (r.batch,), generator=generator)
        rows = torch.stack([self.data[s : s + r.length + 1] for s in starts.tolist()])
        part = len(rows) // self.shard.world
        noise = torch.zeros(part)
        if r.poison == "sample" and self.position == r.poison_step and self.shard.rank == r.poison_rank:
            noise[0] = float("nan")
        self.position += 1
        return {"bytes": rows[self.shard.rank * part :][:part], "noise": noise}

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


class ByteModel(nn.Module):
    def __init__(self, recipe: ByteRecipe) -> None:
        super().__init__()
        d = recipe.width
        block = BlockConfig(AttentionConfig(d, 2, causal=True), drop_path=recipe.drop_path)
        self.embed = nn.Embedding(256, d)
        self.blocks = nn.ModuleList(Block(block, GeluFFN(d, 4 * d)) for _ in range(2))
        self.head = nn.Linear(d, 256)
        if recipe.memory:
            insert_memory(self, (1,), side=16, heads=2, top_k=4, key_dim=8)
        self.adversary = nn.Linear(256, 1) if recipe.adversary else None

    def forward(self, x: Tensor, adversary: bool = False) -> tuple[Tensor, Tensor | None]:
        y = self.embed(x)
        for block in self.blocks:
            y = block(y)
        logits = self.head(y)
        if not adversary or self.adversary is None:
            return logits, None
        real = F.one_hot(x, 256).float()
        fake = logits.detach().softmax(-1)
        return logits, torch.cat([self.adversary(real), self.adversary(fake)])


class ByteTask(SplitTables):
    def __init__(self, recipe: ByteRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.step = 0
        self.table_ranks = recipe.table_ranks
        if recipe.adversary:
            self.phases = (Phase("model", ("embed", "blocks", "head")), Phase("adversary", ("adversary",)))

    def build(self) -> nn.Module:
        return ByteModel(self.recipe)

    def batches(self, shard: Shard) -> Windows:
        return Windows(self.recipe, shard)

    def training_step(self, model: nn.Module, batch: Any, phase: Phase) -> dict[str, Tensor]:
        r = self.recipe
        time.sleep(r.pause)
        x = batch["bytes"]
        logits, verdict = model(x[:, :-1], adversary=phase.name == "adversary")
        if verdict is not None:
            target = torch.cat(
                [torch.ones(len(verdict) // 2, *verdict.shape[1:]), torch.zeros(len(verdict) // 2, *verdict.shape[1:])]
            )
            return {"loss": F.binary_cross_entropy_with_logits(verdict, target)}
        loss = F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten()) + batch["noise"].mean()
        struck = self.step == r.poison_step and self.ranks.rank == r.poison_rank
        if r.poison == "loss" and struck:
            loss = loss * float("inf")
        if r.poison == "gradient" and struck:
            loss = loss + (logits[0, 0, 0] - logits[0, 0, 0].detach()).abs().sqrt()  # its derivative at 0 is not finite
        return {"loss": loss, "bits": loss.detach() / 0.6931}

    def after_step(self, model: nn.Module, step: int) -> None:
        self.step = step + 1

    def validate(self, model: nn.Module) -> dict[str, float]:
        time.sleep(self.recipe.slow_validation)
        x = next(Windows(self.recipe, Shard()))["bytes"]
        return {"val_loss": float(F.cross_entropy(model(x[:, :-1])[0].flatten(0, 1), x[:, 1:].flatten()))}

    def parameter_depth(self, name: str) -> tuple[int, int] | None:
        return (int(name.split(".")[1]), 2) if name.startswith("blocks.") else None

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


def byte_lm() -> ByteRecipe:
    return ByteRecipe()


def command(args: list[str], environment: dict[str, str], errors: Path) -> None:
    """The command line in this process, standard error into a file: what the tests fork."""
    os.environ.update(environment)
    with errors.open("w") as file:
        os.dup2(file.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    register("byte_lm")
    sys.exit(main(args))


def save_forever(folder: Path) -> None:
    """Writes one checkpoint after another until it is killed."""
    store = CheckpointStore(folder, Place(0, 1, torch.device("cpu")), "byte-lm")
    store.clear_leftovers()
    model = ByteModel(ByteRecipe())
    found = store.newest()
    step = 0
    if found:
        step = found[0]
        state = store.load(found[1], model.state_dict())
        assert state["square"] == step**2
    while True:
        step += 1
        store.save(step, model.state_dict(), {"square": step**2})


def register(module: str) -> None:
    recipes.add("byte-lm", f"{module}:byte_lm", "next-byte prediction")


if __name__ == "__main__":
    register("__main__")
    sys.exit(main())

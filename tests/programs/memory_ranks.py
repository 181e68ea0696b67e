"""A small language model with a memory table on real gloo ranks: what one process computes on the joined batch, several do."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.engine.memory_parallel import own_columns, split_tables
from tenfold.engine.optim import PhaseOptimizer
from tenfold.engine.parallel import Place, join, wrap
from tenfold.engine.row_gradients import average_rows, row_tables
from tenfold.engine.schedule import OptimConfig, Schedule
from tenfold.engine.task import Phase, Task, unwrap
from tenfold.nn.attention import AttentionConfig
from tenfold.nn.block import Block, BlockConfig
from tenfold.nn.ffn import SquaredReLUFFN
from tenfold.nn.memory import insert_memory

ROWS, LENGTH, DIM, STEPS = 8, 6, 16, 10


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = BlockConfig(AttentionConfig(DIM, 2, causal=True))
        self.embedding = nn.Embedding(32, DIM)
        self.blocks = nn.ModuleList(Block(config, SquaredReLUFFN(DIM, 32)) for _ in range(3))
        insert_memory(self, (0, 2), side=8, heads=2, top_k=4, key_dim=8)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return x @ self.embedding.weight.T


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Whole gradients by name; of a split table this rank's columns."""
    found = {}
    for name, parameter in unwrap(model).named_parameters():
        grad = parameter.grad
        assert grad is not None, name
        grad = grad.to_dense() if grad.is_sparse else grad
        found[name] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad.clone()  # type: ignore[operator]
    return found


def train(place: Place, ranks: int, parallel: str) -> dict[str, object]:
    """Ten steps; losses, norms, the first output and gradients, and the columns of the table that this rank held."""
    torch.manual_seed(0)
    with own_columns(place, ranks):
        model = Model()
    split_tables(model, place, ranks)
    held = model.get_parameter("memory.values").numel()
    wrapped = wrap(model, place, parallel, layers=Task().layers(model), apart=row_tables(model))  # type: ignore[arg-type]
    optim = OptimConfig(lr=1e-2, clip=0.5, schedule=Schedule("linear"))
    optimizer = PhaseOptimizer(wrapped, Task(), Phase(), optim)
    generator = torch.Generator().manual_seed(1)
    share = ROWS // place.world
    found: dict[str, object] = {"held": held}
    losses, norms = [], []
    for step in range(STEPS):
        whole = torch.randint(32, (ROWS, LENGTH + 1), generator=generator)
        batch = whole[place.rank * share :][:share]
        optimizer.zero_grad()
        logits = wrapped(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        for parameter, table in row_tables(unwrap(wrapped)).items():
            average_rows(parameter, table, place)
        if step == 0:
            found |= {"logits": logits.detach(), "gradients": gradients(wrapped)}
        optimizer.set_rates(step, STEPS)
        norms.append(optimizer.clip(place))
        optimizer.step()
        value = loss.detach().clone()
        if place.world > 1:
            torch.distributed.all_reduce(value)
        losses.append(value / place.world)
    return found | {"losses": torch.stack(losses), "norms": torch.tensor(norms)}


def main(environment: dict[str, str], folder: Path, ranks: int, parallel: str) -> None:
    """One rank of a group."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    place = join("cpu")
    torch.save(train(place, ranks, parallel), folder / f"{place.rank}.pt")
    place.leave()


def refused(environment: dict[str, str], folder: Path, case: str) -> None:
    """One rank that is told why its split cannot be; the words go to a file."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    place = join("cpu")
    from tenfold.errors import UsageError
    from tenfold.nn.memory import ExpertTable, MemoryTable

    words = ""
    try:
        if case == "width":
            with own_columns(place, 2):
                MemoryTable(4, 15)
        elif case == "peer":
            model = nn.Module()
            model.memory = ExpertTable(4, 16)
            split_tables(model, place, 2)
        elif case == "group":
            with own_columns(place, 3):
                pass
        else:  # unequal tokens
            torch.manual_seed(0)
            with own_columns(place, 2):
                model = Model()
            split_tables(model, place, 2)
            model(torch.zeros(1 + place.rank, 3, dtype=torch.long))
    except UsageError as error:
        words = str(error)
    (folder / f"{place.rank}.txt").write_text(words)
    place.leave()

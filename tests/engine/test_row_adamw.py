"""RowAdamW against dense AdamW that is called, row by row, only in the steps that touched the row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tenfold.engine.optim import PhaseOptimizer
from tenfold.engine.parallel import Place
from tenfold.engine.row_adamw import RowAdamW
from tenfold.engine.schedule import OptimConfig
from tenfold.engine.task import Phase, Task
from tenfold.nn.memory import MemoryLayer, MemoryTable

ALONE = Place(0, 1, torch.device("cpu"))


def rates(step: int) -> float:
    return 1e-2 * (1 - step / 60)


def sparse(rows: dict[int, Tensor], like: Tensor) -> Tensor:
    ids = sorted(rows)
    stacked = torch.stack([rows[i] for i in ids])
    return torch.sparse_coo_tensor(torch.tensor([ids]), stacked, like.shape, is_coalesced=True, check_invariants=True)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_each_row_moves_as_dense_adamw_on_the_steps_that_touched_it(decay: float) -> None:
    torch.manual_seed(0)
    start = torch.randn(12, 7)
    table = nn.Parameter(start.clone())
    ours = RowAdamW([table], lr=0.0, betas=(0.9, 0.95), weight_decay=decay)
    oracles = [nn.Parameter(row.clone()) for row in start]
    dense = [torch.optim.AdamW([row], lr=0.0, betas=(0.9, 0.95), weight_decay=decay) for row in oracles]
    for step in range(50):
        touched = [r for r in range(11) if (step * 7 + r * r) % (r + 1) == 0]  # row 0 always, row 11 never
        rows = {r: torch.randn(7) for r in touched}
        table.grad = sparse(rows, table)
        ours.param_groups[0]["lr"] = rates(step)
        ours.step()
        for r, gradient in rows.items():
            dense[r].param_groups[0]["lr"] = rates(step)
            oracles[r].grad = gradient
            dense[r].step()
    torch.testing.assert_close(table.detach(), torch.stack([row.detach() for row in oracles]), rtol=1e-6, atol=1e-6)
    assert table[11].equal(start[11])
    assert not ours.state[table]["exp_avg"][11].any()
    counts = ours.state[table]["count"]
    assert counts[0] == 50
    assert counts[11] == 0


def test_untouched_rows_keep_their_bits_and_moments() -> None:
    torch.manual_seed(0)
    table = nn.Parameter(torch.randn(6, 4))
    ours = RowAdamW([table], lr=0.1, weight_decay=0.5)
    table.grad = sparse({1: torch.randn(4), 4: torch.randn(4)}, table)
    ours.step()
    before = [table.detach().clone(), *(value.clone() for value in ours.state[table].values())]
    table.grad = sparse({4: torch.randn(4)}, table)
    ours.step()
    for old, new in zip(before, [table.detach(), *ours.state[table].values()]):
        keep = torch.arange(6) != 4
        assert old[keep].equal(new[keep])
        assert not old[4].equal(new[4])


class Memory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.memory = MemoryTable(8, 12)
        self.layers = nn.ModuleList(MemoryLayer(12, self.memory, heads=2, top_k=4, key_dim=6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


class MemoryTask(Task):
    def parameter_scale(self, name: str, parameter: nn.Parameter) -> tuple[float, float]:
        return (10.0, 0.0) if name == "memory.values" else super().parameter_scale(name, parameter)


def optimizer(model: nn.Module, **options: object) -> PhaseOptimizer:
    return PhaseOptimizer(model, MemoryTask(), Phase(), OptimConfig(**options))  # type: ignore[arg-type]


def norm(model: nn.Module) -> float:
    squares = [p.grad.to_dense().double().square().sum() for p in model.parameters() if p.grad is not None]
    return float(torch.stack(squares).sum().sqrt())


def test_clipping_includes_the_table() -> None:
    model = Memory()
    (model(torch.randn(5, 12)).square().sum() * 10).backward()
    truth = norm(model)
    without = Memory()
    (without(torch.randn(5, 12)).square().sum() * 10).backward()
    without.memory.values.grad = None
    assert optimizer(model, clip=0.5).clip(ALONE) == pytest.approx(truth, rel=1e-6)
    assert norm(model) == pytest.approx(0.5, rel=1e-4)
    assert truth > norm(without)


def test_a_table_has_its_own_rate_and_no_decay() -> None:
    ours = optimizer(Memory(), lr=1e-3, weight_decay=0.1)
    ours.set_rates(20, 100)
    ordinary = next(g for g in ours.optimizer.param_groups if g["weight_decay"] > 0)
    (table,) = ours.rows.param_groups
    assert table["lr"] == pytest.approx(10 * ordinary["lr"])
    assert table["weight_decay"] == 0.0


def test_four_small_batches_equal_one_big_one() -> None:
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))
    results = []
    for parts in (1, 4):
        model = Memory()
        ours = optimizer(model, lr=1e-3, clip=1.0)
        for step in range(3):
            ours.zero_grad()
            for part in x.chunk(parts):
                (model(part).square().mean() / parts).backward()
            ours.set_rates(step, 3)
            ours.clip(ALONE)
            ours.step()
        results.append(model.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_row_state_moves_to_a_new_optimizer() -> None:
    model = Memory()
    first = optimizer(model)
    model(torch.randn(5, 12)).sum().backward()
    first.step()
    saved = {name: value.clone() for name, value in first.tensors().items()}
    assert {"memory.values.exp_avg", "memory.values.exp_avg_sq", "memory.values.count"} <= set(saved)
    second = optimizer(model)
    second.allocate(saved)
    assert set(second.tensors()) == set(saved)

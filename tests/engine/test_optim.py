"""Groups, rates, clipping and averages, on real gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tenfold.engine.optim import PhaseOptimizer, WeightAverage
from tenfold.engine.parallel import Place
from tenfold.engine.schedule import OptimConfig, Schedule
from tenfold.engine.task import Phase, Task
from tenfold.errors import UsageError

ALONE = Place(0, 1, torch.device("cpu"))


class Small(nn.Module):
    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.Embedding(50, 6, sparse=sparse)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.norm = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.rows(x)
        for block in self.blocks:
            y = y + block(y).relu()
        return self.norm(y).square().mean() * 50 + y.sum()


class SmallTask(Task):
    def parameter_depth(self, name: str) -> tuple[int, int] | None:
        return (int(name.split(".")[1]), 3) if name.startswith("blocks.") else None


def optimizer(model: nn.Module, phase: Phase | None = None, **options: object) -> PhaseOptimizer:
    return PhaseOptimizer(model, SmallTask(), phase or Phase(), OptimConfig(**options))  # type: ignore[arg-type]


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in model.parameters() if p.grad is not None]


def test_vectors_do_not_decay_and_blocks_near_the_input_learn_slower() -> None:
    model = Small()
    ours = optimizer(model, lr=1.0, layer_decay=0.5, weight_decay=0.1, schedule=Schedule("constant"))
    ours.set_rates(0, 10)
    rates = {
        name: (g["lr"], g["weight_decay"])
        for g in ours.optimizer.param_groups
        for p in g["params"]
        for name in [ours.names[p]]
    }
    assert rates["blocks.0.weight"] == (0.125, 0.1)
    assert rates["blocks.2.weight"] == (0.5, 0.1)
    assert rates["blocks.2.bias"] == (0.5, 0.0)
    assert rates["norm.weight"] == (1.0, 0.0)
    assert rates["rows.weight"] == (1.0, 0.1)
    assert len(rates) == len(list(model.parameters()))


def test_decay_moves_from_its_first_to_its_last_value() -> None:
    ours = optimizer(Small(), weight_decay=0.04, weight_decay_end=0.4)
    decays = [ours.set_rates(step, 11)[1] for step in range(11)]
    assert decays[0] == pytest.approx(0.04)
    assert decays[-1] == pytest.approx(0.4)
    assert decays[5] == pytest.approx(0.22)
    assert decays == sorted(decays)


def test_a_phase_moves_its_own_parameters_alone_and_an_empty_one_is_refused() -> None:
    ours = optimizer(Small(), Phase("head", ("norm",)))
    assert set(ours.names.values()) == {"norm.weight", "norm.bias"}
    with pytest.raises(UsageError, match="trains no parameter"):
        optimizer(Small(), Phase("x", ("absent",)))


@pytest.mark.parametrize("sparse", [False, True])
def test_clipping_scales_to_the_norm_whether_gradients_are_rows_or_whole(sparse: bool) -> None:
    model = Small(sparse)
    model(torch.tensor([1, 1, 7])).backward()
    expected = math.sqrt(sum(g.double().square().sum().item() for g in gradients(model)))
    assert optimizer(model, clip=0.5).clip(ALONE) == pytest.approx(expected, rel=1e-5)
    after = math.sqrt(sum(g.double().square().sum().item() for g in gradients(model)))
    assert after == pytest.approx(0.5, rel=1e-4)


def test_a_small_gradient_is_left_alone_and_a_bad_one_is_reported_untouched() -> None:
    model = Small()
    model(torch.tensor([3])).backward()
    before = [g.clone() for g in gradients(model)]
    optimizer(model, clip=1e9).clip(ALONE)
    assert all(a.equal(b) for a, b in zip(before, gradients(model)))
    bias = model.norm.bias.grad
    assert bias is not None
    bias[2] = float("nan")
    assert not math.isfinite(optimizer(model, clip=1.0).clip(ALONE))
    assert all(a.equal(b) for a, b in zip(before[:-1], gradients(model)[:-1]))


def test_modules_are_clipped_one_by_one_when_asked() -> None:
    model = Small()
    model(torch.tensor([1, 2])).backward()
    before = model.rows.weight.grad.norm(), model.norm.weight.grad.norm()  # type: ignore[union-attr]
    optimizer(model, clip=1.0, clip_per_module=True).clip(ALONE)
    after = model.rows.weight.grad.norm()  # type: ignore[union-attr]
    assert after == pytest.approx(min(1.0, float(before[0])), rel=1e-4)


def test_state_moves_to_a_new_optimizer_and_unused_parameters_have_none() -> None:
    model = Small()
    model.norm.requires_grad_(True)
    first = optimizer(model)
    (model.rows(torch.tensor([1])).sum()).backward()
    first.step()
    saved = {name: value.clone() for name, value in first.tensors().items()}
    assert set(saved) == {"rows.weight.step", "rows.weight.exp_avg", "rows.weight.exp_avg_sq"}
    second = optimizer(model)
    second.allocate(saved)
    for name, value in second.tensors().items():
        value.copy_(saved[name])
    assert float(second.optimizer.state[model.rows.weight]["step"]) == 1.0


def test_the_average_follows_and_is_in_the_model_only_while_swapped() -> None:
    model = Small()
    average = WeightAverage(model, 0.9)
    start = model.norm.weight.detach().clone()
    with torch.no_grad():
        model.norm.weight.add_(1.0)
    average.update()
    moved = model.norm.weight.detach().clone()
    with average.swapped():
        torch.testing.assert_close(model.norm.weight.detach(), start + 0.1)
    assert model.norm.weight.equal(moved)

"""Use of memory slots is counted as the layers read them, evenly spread or not, and watching changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tenfold.errors import UsageError
from tenfold.nn.memory import MemoryLayer, MemoryTable
from tenfold.nn.memory_usage import MemoryUsage

SLOTS = 64


class Model(nn.Module):
    """Two layers that share a table of 64 slots."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.memory = MemoryTable(8, 12)
        self.layers = nn.ModuleList(MemoryLayer(12, self.memory, heads=2, top_k=4, key_dim=6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def test_counts_are_the_weights_of_every_read_and_watching_changes_nothing() -> None:
    model, x = Model(), torch.randn(3, 5, 12)
    plain = model(x)
    with MemoryUsage(model) as usage:
        assert torch.equal(model(x), plain)
        assert torch.equal(model(x), plain)
    model(x)  # after the block nothing is counted
    layer = model.layers[0]
    assert isinstance(layer, MemoryLayer)
    index, weight = layer.lookup(x.flatten(0, 1))
    expected = torch.zeros(SLOTS).index_add(0, index.flatten(), weight.flatten())
    assert torch.allclose(usage.weight[0], 2 * expected, atol=1e-5)
    assert usage.weight.sum().item() == pytest.approx(2 * 2 * 15 * 2, rel=1e-5)  # weights of a head add up to 1
    read = usage.weight[0] > 0
    assert usage.layer_coverage["layers.0"] == pytest.approx(read.float().mean().item())
    assert usage.coverage == pytest.approx((usage.weight.sum(0) > 0).float().mean().item())
    assert max(usage.layer_coverage.values()) <= usage.coverage <= 1


def test_divergence_runs_from_even_use_to_a_single_slot() -> None:
    usage = MemoryUsage(Model())
    usage.weight.fill_(3.0)
    assert usage.divergence == pytest.approx(0.0, abs=1e-6)
    usage.weight.zero_()
    usage.weight[1, 5] = 2.0
    assert usage.divergence == pytest.approx(math.log(SLOTS))
    usage.weight[0, 6] = 2.0
    assert usage.divergence == pytest.approx(math.log(SLOTS / 2))


def test_the_most_read_slots_come_first_with_their_shares_of_all_reads() -> None:
    usage = MemoryUsage(Model())
    usage.weight[0, 7], usage.weight[1, 7], usage.weight[0, 3], usage.weight[1, 9] = 1.0, 4.0, 3.0, 2.0
    slots, shares = usage.most_read(3)
    assert slots.tolist() == [7, 3, 9]
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.2])
    assert len(usage.most_read(1000)[0]) == SLOTS


def test_a_model_without_memory_is_refused() -> None:
    with pytest.raises(UsageError, match="no memory layers"):
        MemoryUsage(nn.Linear(2, 2))

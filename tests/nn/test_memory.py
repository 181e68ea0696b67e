"""Product keys find what a search of every slot finds, and several layers share one table."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tenfold.errors import UsageError
from tenfold.kernels.bag import coalesced
from tenfold.nn.attention import AttentionConfig
from tenfold.nn.block import Block, BlockConfig
from tenfold.nn.ffn import GeluFFN
from tenfold.nn.memory import (
    ExpertTable,
    MemoryLayer,
    MemoryTable,
    ProductKeys,
    centred_layers,
    insert_memory,
    winning_pairs,
)


class Holder(nn.Module):
    """A model that owns a table and three layers."""

    memory: Any  # the table that the variant reads
    layers: Any

    def __init__(self, variant: Any = "plus") -> None:
        super().__init__()
        self.memory = (ExpertTable if variant == "peer" else MemoryTable)(8, 12)
        self.layers = nn.ModuleList(
            MemoryLayer(12, self.memory, heads=2, top_k=4, key_dim=6, variant=variant) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 64),
    st.integers(1, 5),
    st.integers(1, 64),
    st.sampled_from(["query", "both", "none"]),
    st.integers(0, 10**6),
)
def test_lookup_is_a_search_of_every_slot(side: int, heads: int, k: int, norm: Any, seed: int) -> None:
    k = min(k, side)
    torch.manual_seed(seed)
    keys = ProductKeys(7, side, heads=heads, top_k=k, key_dim=6, qk_norm=norm).double()
    x = torch.randn(3, 7, dtype=torch.float64)
    with torch.no_grad():
        index, weight = keys.lookup(x)
        s = keys.scores(x)
        everything = (s[:, :, 0, :, None] + s[:, :, 1, None, :]).flatten(2)
    best, slots = everything.topk(k)
    assert index.sort().values.equal(slots.sort().values)
    torch.testing.assert_close(weight, best.softmax(-1), rtol=1e-6, atol=1e-6)
    assert (weight.diff() <= 1e-12).all()


def test_scores_are_those_of_the_paper() -> None:
    keys = ProductKeys(5, 4, heads=2, top_k=2, key_dim=6, qk_norm="none")
    x = torch.randn(3, 5)
    q = keys.query(x).view(3, 2, 6)
    s = keys.scores(x)
    torch.testing.assert_close(s[1, 0, 0, 2], q[1, 0, :3] @ keys.keys[0, 0, 2])
    torch.testing.assert_close(s[2, 1, 1, 3], q[2, 1, 3:] @ keys.keys[1, 1, 3])


@pytest.mark.parametrize("norm", ["query", "both", "none"])
def test_scores_start_with_one_spread_whatever_the_normalisation(norm: Any) -> None:
    torch.manual_seed(0)
    keys = ProductKeys(64, 256, heads=4, key_dim=16, qk_norm=norm)
    spread = keys.scores(torch.randn(100, 64)).std().item()
    assert spread == pytest.approx(math.sqrt(1 / 6), rel=0.3)


def test_pruned_pairs_are_few_and_the_full_table_of_sums_is_never_made() -> None:
    assert len(winning_pairs(32)[0]) == 119
    assert len(winning_pairs(16)[0]) == 50
    tokens, heads, k = 5, 2, 64
    keys = ProductKeys(8, 64, heads=heads, top_k=k, key_dim=8)

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(value, Tensor):
                    self.elements = max(self.elements, value.numel())
            return result

    with Largest() as seen:
        keys.lookup(torch.randn(tokens, 8))
    assert 0 < seen.elements < tokens * heads * k * k / 4


@pytest.mark.parametrize("gate", [False, True])
def test_plus_is_its_equation(gate: bool) -> None:
    torch.manual_seed(0)
    table = MemoryTable(5, 9)
    layer = MemoryLayer(7, table, heads=3, top_k=2, key_dim=4, gate=gate)
    x = torch.randn(2, 4, 7)
    index, weight = layer.lookup(x.view(8, 7))
    y = (table.values[index] * weight[..., None]).sum((1, 2))
    assert layer.gate_in is not None
    assert layer.out is not None
    y = layer.out(y * F.silu(layer.gate_in(x.view(8, 7))))
    if layer.gate is not None:
        y = y * layer.gate(x.view(8, 7)).sigmoid()
    torch.testing.assert_close(layer(x), y.view(2, 4, 7))


def test_peer_is_its_equation_with_its_gradients() -> None:
    torch.manual_seed(0)
    table = ExpertTable(5, 7).double()
    layer = MemoryLayer(7, table, heads=3, top_k=2, key_dim=4, variant="peer").double()
    x = torch.randn(8, 7, dtype=torch.float64, requires_grad=True)
    index, weight = layer.lookup(x)
    hidden = F.gelu((table.down[index] * x[:, None, None]).sum(-1)) * weight
    truth = (hidden[..., None] * table.up[index]).sum((1, 2))
    ours = layer(x)
    torch.testing.assert_close(ours, truth)
    grad = torch.randn_like(ours)
    parameters = [x, table.down, table.up, layer.keys, layer.query.weight]
    dense = torch.autograd.grad(truth, parameters, grad, retain_graph=True)
    for one, two in zip(torch.autograd.grad(ours, parameters, grad), dense):
        torch.testing.assert_close(one.to_dense(), two, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("variant", "names"), [("plus", {"memory.values"}), ("peer", {"memory.down", "memory.up"})])
def test_three_layers_share_one_storage_that_stands_once_in_the_state(variant: str, names: set[str]) -> None:
    model = Holder(variant)
    assert {name for name in model.state_dict() if "memory" in name or "table" in name} == names
    assert len({id(layer.table) for layer in model.layers}) == 1
    model(torch.randn(6, 12)).sum().backward()
    touched: set[int] = set()
    for layer in model.layers:
        assert layer.keys.grad is not None
    for name in names:
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        touched |= set(coalesced(gradient)._indices()[0].tolist())
    assert len(touched) > 4


def test_copies_and_second_models_have_tables_of_their_own() -> None:
    first, second = Holder(), Holder()
    copied = copy.deepcopy(first)
    pointers = [m.memory.values.data_ptr() for m in (first, second, copied)]
    assert len(set(pointers)) == 3
    assert all(layer.table is copied.memory for layer in copied.layers)
    x = torch.randn(5, 12)
    assert copied(x).equal(first(x))
    with torch.no_grad():
        first.memory.values.zero_()
    assert not copied(x).equal(first(x))
    second.load_state_dict(copied.state_dict())
    assert second(x).equal(copied(x))
    moved = copy.deepcopy(first).double()
    assert moved(x.double()).dtype == torch.float64


def test_a_gradient_step_moves_all_but_frozen_rows_and_written_rows_are_read() -> None:
    model = Holder()
    x = torch.randn(5, 12)
    read = model.layers[0].lookup(x)[0].flatten()
    model.memory.freeze(read[:3])
    model.memory.freeze(read[3:4])
    model(x).sum().backward()
    gradient = model.memory.values.grad
    assert gradient is not None
    moved = set(coalesced(gradient)._indices()[0].tolist())
    assert not moved & set(read[:4].tolist())
    assert moved
    before = model(x)
    model.memory.write(read[:1], torch.ones(1, 12))
    assert model.memory.values[read[0]].tolist() == [1.0] * 12
    assert not model(x).equal(before)


def test_memory_replaces_centred_feed_forward_networks() -> None:
    assert centred_layers(24, 3) == (4, 12, 20)
    assert centred_layers(4, 2) == (1, 3)
    model = nn.Module()
    config = BlockConfig(AttentionConfig(12, 2))
    model.blocks = nn.ModuleList(Block(config, GeluFFN(12, 24)) for _ in range(4))
    with pytest.raises(UsageError, match="allowed are 0 to 3"):
        insert_memory(model, (1, 4), side=8, heads=2, top_k=4, key_dim=6)
    assert isinstance(model.blocks[1].ffn, GeluFFN)
    made = insert_memory(model, centred_layers(4, 2), side=8, heads=2, top_k=4, key_dim=6)
    assert model.blocks[1].ffn is made[0]
    assert model.blocks[3].ffn is made[1]
    assert sum("values" in name for name in model.state_dict()) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 9}, "allowed is 1 to 8"),
        ({"key_dim": 7}, "even number"),
        ({"heads": 0}, "heads = 0"),
        ({"variant": "peer"}, "ExpertTable"),
        ({"variant": "pkm", "dim": 5}, "width 5"),
    ],
)
def test_what_cannot_be_is_refused_with_what_is_allowed(options: dict[str, Any], words: str) -> None:
    dim = options.pop("dim", 12)
    with pytest.raises(UsageError, match=words):
        MemoryLayer(dim, MemoryTable(8, 12), **{"heads": 2, "top_k": 4, "key_dim": 6, **options})


def test_macs_are_those_of_the_products_in_it() -> None:
    layer = MemoryLayer(64, MemoryTable(128, 64), heads=4, top_k=16, key_dim=32)
    assert layer.macs_per_token == 64 * 4 * 32 + 4 * 128 * 32 + 4 * 16 * 64 + 2 * 64 * 64

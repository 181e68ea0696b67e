"""Memory layers with copied weights equal two public implementations: values to 1e-5, gradients of the input too."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import Tensor, nn

from tenfold.nn.memory import ExpertTable, MemoryLayer, MemoryTable

pytestmark = pytest.mark.oracle

DIM, HEADS, SIDE, TOP_K, HALF = 32, 3, 16, 5, 8


def copied(layer: MemoryLayer, queries: Tensor, keys: Tensor) -> None:
    """Their queries are (half, head, width) by rows, their keys (head, slot, half, width)."""
    with torch.no_grad():
        layer.query.weight.copy_(queries.view(2, HEADS, HALF, DIM).transpose(0, 1).reshape(-1, DIM))
        layer.query.bias.zero_()
        layer.keys.copy_(keys.transpose(1, 2))


def same(ours: nn.Module, theirs: nn.Module) -> None:
    x = torch.randn(2, 7, DIM)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    results = [model(given) for model, given in zip((ours, theirs), inputs)]
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)
    for result in results:
        result.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-5)


def test_product_key_memory() -> None:
    # Its other top-k, by coordinate descent, comes from a package that is not needed here.
    absent = types.ModuleType("colt5_attention")
    absent.topk = None  # type: ignore[attr-defined]
    sys.modules.setdefault("colt5_attention", absent)
    from product_key_memory import PKM  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    theirs = PKM(DIM, heads=HEADS, num_keys=SIDE, topk=TOP_K, dim_head=HALF)
    table = MemoryTable(SIDE, DIM)
    ours = MemoryLayer(DIM, table, heads=HEADS, top_k=TOP_K, key_dim=2 * HALF, variant="pkm")
    copied(ours, theirs.to_queries.weight, theirs.keys)
    with torch.no_grad():
        table.values.copy_(theirs.values.weight)
    same(ours, theirs)


def test_peer() -> None:
    from PEER_pytorch import PEER  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    theirs = PEER(
        DIM, heads=HEADS, num_experts=SIDE**2, num_experts_per_head=TOP_K, dim_key=HALF, non_competing_scores=False
    )
    table = ExpertTable(SIDE, DIM)
    ours = MemoryLayer(DIM, table, heads=HEADS, top_k=TOP_K, key_dim=2 * HALF, variant="peer", qk_norm="none")
    copied(ours, theirs.to_queries[0].weight, theirs.keys)
    with torch.no_grad():
        table.down.copy_(theirs.weight_down_embed.weight)
        table.up.copy_(theirs.weight_up_embed.weight)
    same(ours, theirs)

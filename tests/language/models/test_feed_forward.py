"""Networks start at the scale that their width asks for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.llama import SQUARED_GAIN, Llama, initialise_by_width
from tenfold.nn.memory import MemoryLayer

KINDS: list[dict[str, Any]] = [
    {"activation": "swiglu"},
    {"activation": "relu2"},
    {"activation": "relu2", "experts": 2},
    {"activation": "relu2", "memory_layers": (1,), "memory_side": 16, "memory_top_k": 4, "memory_key_dim": 8},
]


@pytest.mark.parametrize("kind", KINDS)
def test_sums_start_at_unit_size_and_what_blocks_add_does_not_grow_with_depth(kind: dict[str, Any]) -> None:
    torch.manual_seed(0)
    depth, dim = 8, 64
    model = Llama(LlamaConfig(vocabulary=500, dim=dim, hidden=128, depth=depth, heads=4, kv_heads=4, **kind))
    initialise_by_width(model)
    blocks: Any = model.blocks
    for block in blocks:
        memory = isinstance(block.ffn, MemoryLayer)
        own = [] if memory else [(n, w) for n, w in block.ffn.named_parameters() if w.ndim == 2]
        for name, weight in [*block.attention.named_parameters(), *own]:
            wanted = weight.shape[1] ** -0.5
            if name.endswith(("out.weight", "down.weight")):
                wanted *= (2 * depth) ** -0.5
            if kind["activation"] == "relu2" and "memory_layers" not in kind and name.endswith("up.weight"):
                wanted *= SQUARED_GAIN
            assert float(weight.detach().std()) == pytest.approx(wanted, rel=0.1), name
        if memory:
            assert float(block.ffn.out.weight.detach().std()) == pytest.approx(dim**-0.5, rel=0.1)
    assert float(model.embedding.weight.detach().std()) == pytest.approx(dim**-0.5, rel=0.1)


def test_hidden_units_of_both_kinds_begin_with_the_same_second_moment() -> None:
    torch.manual_seed(0)
    x, moments = torch.randn(2000, 64), {}
    for kind in ("swiglu", "relu2"):
        sizes: dict[str, Any] = {"dim": 64, "hidden": 512, "depth": 1, "heads": 4, "kv_heads": 4}
        model = Llama(LlamaConfig(vocabulary=50, activation=kind, **sizes))
        initialise_by_width(model)
        ffn: Any = next(iter(model.blocks)).ffn
        hidden: list[torch.Tensor] = []
        ffn.down.register_forward_pre_hook(lambda _, given, hidden=hidden: hidden.append(given[0]))
        ffn(x)
        moments[kind] = float(hidden[0].detach().square().mean())
    assert moments["relu2"] == pytest.approx(moments["swiglu"], rel=0.1)

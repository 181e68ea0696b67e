"""An outline has a module's names and shapes, and costs neither memory nor random numbers nor torch's compiler."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from tenfold.nn.outline import outline


def build() -> nn.Module:
    layer = nn.Linear(3, 5)
    nn.init.normal_(layer.weight)
    return nn.Sequential(layer, nn.Embedding(7, 3), nn.LayerNorm(4))


def test_an_outline_has_the_shapes_and_draws_nothing() -> None:
    before = torch.get_rng_state()
    with outline():
        module = build()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.is_meta for p in module.parameters())
    real = build().state_dict()
    assert {n: t.shape for n, t in module.state_dict().items()} == {n: t.shape for n, t in real.items()}
    assert float(build()[0].weight.detach().std()) > 0.1  # type: ignore[index,union-attr]  outside nothing has changed


def test_an_outline_does_not_load_the_compiler() -> None:
    code = (
        "import sys, torch; from tenfold.nn.outline import outline\n"
        "with outline(): torch.nn.Embedding(7, 3); torch.nn.Linear(3, 5)\n"
        "print('torch._inductor' in sys.modules, 'sympy' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False", "False"]

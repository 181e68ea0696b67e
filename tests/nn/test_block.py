"""Packed groups give what each gives alone; stochastic depth keeps the expectation and computes the kept rows alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tenfold.nn.attention import AttentionConfig
from tenfold.nn.block import Block, BlockConfig, kept_samples
from tenfold.nn.ffn import GeluFFN, SwiGLUFFN
from tenfold.nn.rope import AxialRope

DIM = 32


def block(ffn: type[nn.Module] = GeluFFN, causal: bool = False, **options: Any) -> Block:
    torch.manual_seed(0)
    attention = AttentionConfig(DIM, 4, causal=causal)
    made = Block(BlockConfig(attention, **options), ffn(DIM, 48))
    for p in made.parameters():
        nn.init.normal_(p, 0.0, 0.3)
    return made.double()


@pytest.mark.parametrize(
    "options",
    [{}, {"layer_scale": 0.5}, {"norm_first": False}, {"causal": True}, {"norm": "rms", "ffn": SwiGLUFFN}],
)
def test_packed_groups_equal_one_by_one(options: dict[str, Any]) -> None:
    made = block(**options)
    rope = AxialRope(8).double()
    sizes = [(2, 3, 4), (5, 2, 2), (1, 5, 5)]
    xs = [torch.randn(b, 1 + h * w, DIM, dtype=torch.float64) for b, h, w in sizes]
    rotations = [rope(h, w) for _, h, w in sizes]
    together = made(xs, rotations)
    for x, rotation, y in zip(xs, rotations, together, strict=True):
        assert torch.allclose(made(x, rotation), y, atol=1e-10)


def test_post_norm_ends_in_a_norm_and_pre_norm_adds_to_its_input() -> None:
    x = torch.randn(2, 6, DIM, dtype=torch.float64)
    post = block(norm_first=False)
    nn.init.ones_(post.norm2.weight)
    nn.init.zeros_(post.norm2.bias)
    y = post(x)
    assert torch.allclose(y.mean(-1), torch.zeros(2, 6).double(), atol=1e-9)
    pre = block(layer_scale=0.0)
    nn.init.zeros_(pre.scale1)  # type: ignore[arg-type]
    nn.init.zeros_(pre.scale2)  # type: ignore[arg-type]
    assert torch.equal(pre(x), x)


class Rows(nn.Module):
    """A feed-forward network that notes how many rows it gets."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.numel() // x.shape[-1]
        return self.inner(x)


def test_stochastic_depth_computes_the_kept_rows_alone() -> None:
    made = block(drop_path=0.4).train()
    made.ffn = rows = Rows(made.ffn)
    x = torch.randn(10, 7, DIM, dtype=torch.float64)
    y = made(x)
    assert rows.seen == kept_samples(10, 0.4) * 7 == 42
    untouched = sum(torch.equal(a, b) for a, b in zip(x, y))
    assert untouched <= 4  # dropped by both branches
    made.eval()(x)
    assert rows.seen == 70


def test_stochastic_depth_keeps_the_expectation() -> None:
    made = block(drop_path=0.5, layer_scale=0.1).train()
    nn.init.zeros_(made.scale2)  # type: ignore[arg-type]  # one branch, so that the expectation is exact
    x = torch.randn(8, 4, DIM, dtype=torch.float64)
    with torch.no_grad():
        mean = torch.stack([made(x) for _ in range(600)]).mean(0)
        whole = made.eval()(x)
    branch = (whole - x).norm()
    assert (mean - whole).norm() < 0.1 * branch  # the standard error is 1 / sqrt(600) = 0.04 of it


@pytest.mark.parametrize(("batch", "share", "kept"), [(10, 0.4, 6), (1, 0.9, 1), (3, 0.5, 1), (4, 0.0, 4)])
def test_at_least_one_sample_is_kept(batch: int, share: float, kept: int) -> None:
    assert kept_samples(batch, share) == kept


def test_gradients_of_packed_groups_equal_one_by_one() -> None:
    made = block(layer_scale=0.5)
    xs = [torch.randn(2, 5, DIM, dtype=torch.float64), torch.randn(3, 2, DIM, dtype=torch.float64)]
    together = torch.autograd.grad(torch.stack([y.sin().sum() for y in made(xs)]).sum(), list(made.parameters()))
    alone = torch.autograd.grad(torch.stack([made(x).sin().sum() for x in xs]).sum(), list(made.parameters()))
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(together, alone, strict=True))

"""Convolutional blocks equal their formulas, and merging patches looks into no other patch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tenfold.nn.conv import ConvNextBlock, PatchMerge


def test_a_convnext_block_equals_its_formula_in_both_memory_formats() -> None:
    torch.manual_seed(0)
    block, x = ConvNextBlock(6, layer_scale=0.5).double(), torch.randn(2, 6, 9, 8, dtype=torch.float64)
    torch.nn.init.normal_(block.gain)
    y = F.conv2d(x, block.depthwise.weight, block.depthwise.bias, padding=3, groups=6)
    y = (y - y.mean(1, keepdim=True)) / (y.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    y = y * block.norm.weight[:, None, None] + block.norm.bias[:, None, None]
    y = torch.einsum("oc,bchw->bohw", block.up.weight, y) + block.up.bias[:, None, None]
    y = torch.einsum("oc,bchw->bohw", block.down.weight, F.gelu(y)) + block.down.bias[:, None, None]
    expected = x + block.gain[:, None, None] * y
    assert torch.allclose(block(x), expected, atol=1e-10)
    assert torch.allclose(block(x.to(memory_format=torch.channels_last)), expected, atol=1e-10)


def test_without_layer_scale_a_block_is_the_identity() -> None:
    block, x = ConvNextBlock(4, layer_scale=0.0), torch.randn(1, 4, 5, 5)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_merged_patch_depends_on_its_own_pixels_only(norm_first: bool) -> None:
    torch.manual_seed(0)
    merge, x = PatchMerge(3, 8, 2, norm_first), torch.randn(1, 3, 8, 6)
    before = merge(x)
    assert before.shape == (1, 8, 4, 3)
    x[:, :, 2:4, 4:6] += 1 + torch.randn(1, 3, 2, 2)
    moved = (merge(x) - before).abs().amax(1)[0] > 1e-6
    assert moved.nonzero().tolist() == [[1, 2]]


def test_the_norm_stands_before_or_after_the_convolution() -> None:
    torch.manual_seed(0)
    stem, between = PatchMerge(3, 8, 4, norm_first=False), PatchMerge(3, 8, 2, norm_first=True)
    out = stem(torch.randn(2, 3, 8, 8))
    assert torch.allclose(out.mean(1), torch.zeros(2, 2, 2), atol=1e-5)
    assert torch.allclose(out.var(1, unbiased=False), torch.ones(2, 2, 2), atol=1e-3)
    x = torch.randn(2, 3, 4, 4)
    assert torch.allclose(between(5 * x + 7), between(x), atol=1e-4)

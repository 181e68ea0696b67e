"""Packed weights of linear maps are as near to the weights as their number of bits allows, and say what they weigh."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.kernels import decode
from tenfold.kernels.machine import bf16_refusal
from tenfold.kernels.packed import GROUP, Int4Linear, Int8Linear, PlainLinear, ReorderedLinear, TiledLinear, unpack_q4_1

OUTPUTS, INPUTS = 64, 96


def weights() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(OUTPUTS, INPUTS), torch.randn(OUTPUTS), torch.randn(2, 3, INPUTS)


def away(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def test_a_plain_map_takes_inputs_of_any_format_to_its_own() -> None:
    weight, bias, x = weights()
    assert torch.equal(PlainLinear(weight, bias)(x), F.linear(x, weight, bias))
    half = PlainLinear(weight.bfloat16(), None)
    assert half(x).dtype == torch.bfloat16
    assert (PlainLinear(weight, bias).bytes, half.bytes) == (weight.numel() * 4, weight.numel() * 2)
    with pytest.raises(TypeError, match="PlainLinear has no tiles"):
        assert half.native


@pytest.mark.parametrize("bias", [True, False])
def test_eight_bits_are_within_a_hundredth_and_cost_a_quarter(bias: bool) -> None:
    weight, offset, x = weights()
    layer = Int8Linear(weight, offset if bias else None)
    y = layer(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert away(y, F.linear(x.bfloat16().float(), weight, offset if bias else None)) < 0.02
    assert weight.numel() <= layer.bytes <= weight.numel() * 1.1


@pytest.mark.skipif(decode.refusal() is not None, reason=f"this machine: {decode.refusal()}")
def test_tiled_bf16_is_the_product_of_the_rounded_weights_and_a_row_has_the_same_bits_anywhere() -> None:
    weight, bias, x = weights()
    layer = TiledLinear(weight, bias)
    exact = F.linear(x.bfloat16().double(), weight.bfloat16().double())
    assert away(layer.wide(x), exact) < 1e-5
    assert away(layer(x), exact + bias) < 0.01
    assert torch.equal(layer(x)[1, 2], layer(x[1, 2]))
    assert layer.bytes == weight.numel() * 2


@pytest.mark.skipif(bf16_refusal() is not None, reason=f"this machine: {bf16_refusal()}")
def test_reordered_bf16_adds_a_residual_inside_the_product() -> None:
    weight, bias, x = weights()
    layer, residual = ReorderedLinear(weight, bias), torch.randn(2, 3, OUTPUTS).bfloat16()
    plain = layer(x.bfloat16())
    assert away(plain, F.linear(x.bfloat16().double(), weight.bfloat16().double(), bias.double())) < 0.01
    assert away(layer(x.bfloat16(), residual), plain.double() + residual.double()) < 0.01


def test_four_bit_blocks_of_a_file_are_unpacked_to_the_weights_that_they_mean() -> None:
    torch.manual_seed(1)
    codes = torch.randint(16, (OUTPUTS, INPUTS), dtype=torch.uint8)
    scale, offset = torch.rand(2, OUTPUTS, INPUTS // GROUP).half()
    halves = codes.view(OUTPUTS, -1, 2, 16)
    numbers = torch.stack((scale, offset), -1).view(torch.uint8)
    blocks = torch.cat((numbers, halves[:, :, 0] | halves[:, :, 1] << 4), -1).flatten(1)
    found = unpack_q4_1(blocks)
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(found, (codes, scale, offset)))
    layer, x = Int4Linear(*found), torch.randn(5, INPUTS).bfloat16()
    wide = codes * scale.float().repeat_interleave(GROUP, 1) + offset.float().repeat_interleave(GROUP, 1)
    assert away(layer(x), F.linear(x.double(), wide.double())) < 0.03
    assert layer.bytes == codes.numel() // 2 + scale.numel() * 4

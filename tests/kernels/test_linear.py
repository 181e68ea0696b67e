"""Linear maps packed for inference equal the plain ones, and scratch memory is made once and reused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tenfold.kernels.linear import PackedLinear, Workspace


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gain", [True, False])
def test_a_packed_linear_map_overwrites_or_adds_inside_the_product(bias: bool, gain: bool) -> None:
    torch.manual_seed(0)
    layer, scale = nn.Linear(6, 4, bias=bias), torch.randn(4) if gain else torch.ones(4)
    x, residual = torch.randn(5, 6), torch.randn(5, 4)
    before, expected = residual.clone(), scale * layer(x)
    packed = PackedLinear(layer.weight, layer.bias, scale if gain else None)
    out = torch.full((5, 4), torch.nan)
    assert packed.into(x, out) is out
    assert torch.allclose(out, expected, atol=1e-6)
    packed.add_to(residual, x)
    assert torch.allclose(residual, before + expected, atol=1e-6)


def test_weights_of_other_formats_are_widened_and_the_layer_is_left_alone() -> None:
    layer = nn.Linear(6, 4).bfloat16()
    before = layer.weight.clone()
    packed = PackedLinear(layer.weight, layer.bias, torch.full((4,), 2.0))
    assert packed.weight.dtype == torch.float32
    assert packed.weight.is_contiguous()
    assert torch.equal(packed.weight, 2 * before.float().t())
    assert torch.equal(layer.weight, before)
    with torch.no_grad():
        layer.bias.zero_()
    assert packed.bias.any()
    assert packed.state_dict() == {}  # it stands in for weights that are in the file


def test_scratch_memory_grows_to_the_largest_request_and_is_then_the_same() -> None:
    space = Workspace()
    first = space.take("hidden", 4, 8)
    assert first.shape == (4, 8)
    assert space.take("hidden", 2, 3).data_ptr() == first.data_ptr()
    assert space.take("other", 4, 8).data_ptr() != first.data_ptr()
    large = space.take("hidden", 9, 8)
    assert space.take("hidden", 8, 9).data_ptr() == large.data_ptr()


def test_memory_taken_in_inference_mode_can_be_written_outside() -> None:
    space = Workspace()
    with torch.inference_mode():
        space.take("hidden", 3).fill_(1.0)
    assert space.take("hidden", 3).mul_(2).tolist() == [2.0, 2.0, 2.0]

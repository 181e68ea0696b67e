"""The compiled decoding kernels: tiled weights of bf16, 8 and 4 bits give their products, and a row the same bits anywhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tenfold.kernels import decode

compiled = pytest.mark.skipif(decode.refusal() is not None, reason=f"this machine: {decode.refusal()}")
OUTPUTS, INPUTS = 77, 96  # 77 is no multiple of a tile


def coded(bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, and a scale and an offset for every 32 inputs, both exact in fp16."""
    torch.manual_seed(bits)
    scale, offset = torch.rand(2, OUTPUTS, INPUTS // decode.GROUP).half().float()
    if bits == 4:
        return torch.randint(16, (OUTPUTS, INPUTS), dtype=torch.uint8), scale, offset - 0.5
    return torch.randint(-127, 128, (OUTPUTS, INPUTS), dtype=torch.int8), scale, offset


def whole(codes: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    wide = codes * scale.repeat_interleave(decode.GROUP, 1)
    return wide if offset is None else wide + offset.repeat_interleave(decode.GROUP, 1)


def test_tiles_hold_every_weight_once_and_zeros_in_what_is_filled_up() -> None:
    weight = torch.randperm(OUTPUTS * INPUTS).view(OUTPUTS, INPUTS).float() + 1
    tiled = decode.tiles(weight)
    assert tiled.shape == (2, INPUTS // 2, 64, 2)
    assert tiled[1, :, 64 - (2 * 64 - OUTPUTS) :].count_nonzero() == 0
    assert torch.equal(tiled[tiled != 0].sort().values, weight.flatten().sort().values)
    assert torch.equal(tiled[1, 5, 3], weight[67, 10:12])


def test_four_bits_take_half_a_byte_each_and_none_is_lost() -> None:
    codes, scale, offset = coded(4)
    packed, numbers = decode.tiles4(codes, scale, offset)
    assert packed.numel() == 2 * 64 * INPUTS // 2
    halves = torch.stack((packed & 15, packed >> 4))
    filled = torch.bincount(halves.flatten().long(), minlength=16)
    filled[0] -= (2 * 64 - OUTPUTS) * INPUTS
    assert torch.equal(filled, torch.bincount(codes.flatten().long(), minlength=16))
    assert torch.equal(numbers[0, 2, :, 5].float(), torch.stack((scale[5, 2], offset[5, 2])))


@compiled
@pytest.mark.parametrize("form", ["bf16", "int8", "int4"])
def test_products_with_tiled_weights_are_those_of_the_weights(form: str) -> None:
    x = torch.randn(2, 5, INPUTS)
    if form == "bf16":
        exact = torch.randn(OUTPUTS, INPUTS).bfloat16().float()
        kept = decode.tiles(exact.bfloat16()), None
    else:
        codes, scale, offset = coded(int(form[-1]))
        exact = whole(codes, scale, offset) if form == "int4" else whole(codes, scale)
        kept = decode.tiles4(codes, scale, offset) if form == "int4" else decode.tiles8(codes, scale)
    pointers = {"weight": decode.pointer(kept[0]), "groups": decode.pointer(kept[1])}
    weight = decode.Linear(**pointers, outputs=OUTPUTS, inputs=INPUTS, kind=getattr(decode, form.upper()))
    y = decode.linear(weight, x)
    assert y.dtype == torch.float32
    expected = x.bfloat16().double() @ exact.double().t()
    error = (y.double() - expected).norm() / expected.norm()
    assert error <= (1e-5 if form == "bf16" else 0.02)  # int8 and int4 round their inputs to 8 bits
    for row in range(5):  # a row has the same bits by itself
        assert torch.equal(decode.linear(weight, x[1, row]), y[1, row])


@compiled
def test_argmax_is_the_first_of_equal_largest_entries() -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 50, (3, 7, 1003)).float()
    best = decode.argmax(x)
    assert torch.equal(x.gather(-1, best[..., None])[..., 0], x.amax(-1))
    for row, place in zip(x.flatten(0, 1), best.flatten().tolist()):
        assert not (row[:place] == row[place]).any()
    x[1, 2, 900] = 1000.0
    assert decode.argmax(x)[1, 2] == 900


def test_a_refusal_and_the_width_of_registers_agree() -> None:
    assert (decode.lanes() in (256, 512)) == (decode.refusal() is None)
    if decode.refusal() is not None:
        with pytest.raises(AssertionError):
            decode.functions()

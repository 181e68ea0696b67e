"""2:4 packing is exact: what was packed is unpacked, in the byte order of torch where torch has the layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tenfold.errors import UsageError
from tenfold.nn.pack24 import MULTIPLES, pack24, pack_activations, unpack24
from tenfold.nn.sparse24 import quantize_rows, select24


def sparse(rows: int, cols: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A 2:4 operand with groups of two, one and no numbers."""
    y = torch.randn(rows, cols).relu()
    return (y * select24(y)).to(dtype)


@pytest.mark.parametrize("layout", MULTIPLES)
@pytest.mark.parametrize("shape", [(64, 128), (1, 4), (33, 260), (130, 96)])
def test_unpacking_gives_back_what_was_packed(layout: str, shape: tuple[int, int]) -> None:
    y = sparse(*shape)
    expected = y
    if layout == "sm90_fp8":
        values, scale = quantize_rows(y)
        expected = values.float() * scale
    packed = pack24(y, layout)
    assert packed.values.numel() * 2 * 4 // 8 == packed.meta.view(torch.uint8).numel() * 4  # 2 bits of place per value
    assert torch.equal(unpack24(packed), expected)


def test_sm80_bytes_are_those_of_torch() -> None:
    from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

    for rows, cols in [(32, 64), (96, 32), (64, 256)]:
        y = sparse(rows, cols, torch.float16)
        values, meta = sparse_semi_structured_from_dense_cutlass(y)
        packed = pack24(y, "sm80")
        assert torch.equal(packed.values, values)
        assert torch.equal(packed.meta.flatten(), meta.flatten())


@pytest.mark.parametrize("layout", MULTIPLES)
def test_every_group_of_a_layout_has_a_place_of_its_own(layout: str) -> None:
    rows, cols = 2 * MULTIPLES[layout][0], 3 * MULTIPLES[layout][1]
    number = torch.arange(rows * cols // 4).view(rows, -1)
    found = torch.zeros(rows * cols // 4, dtype=torch.long)
    for bit in range(int(number.max()).bit_length()):  # a group's number is written bit by bit, and read at its place
        y = torch.zeros(rows, cols)
        y[:, 0::4] = y[:, 1::4] = (number >> bit & 1).float()
        meta = pack24(y, layout).meta.view(torch.uint8).flatten()
        nibbles = torch.stack((meta & 15, meta >> 4), -1).flatten()
        assert set(nibbles.tolist()) == {0 | 1 << 2, 2 | 3 << 2}  # elements 0 and 1 are used, or none is
        found += (nibbles == 0 | 1 << 2).long() << bit
    assert found.sort().values.equal(number.flatten())


def test_negative_zero_is_not_a_value() -> None:
    packed = pack24(torch.tensor([[-0.0, 1.0, -0.0, -0.0]]), "sm90_16bit")
    assert not packed.values.signbit().any()


def test_three_numbers_in_a_group_are_refused() -> None:
    with pytest.raises(UsageError, match="select24"):
        pack24(torch.ones(1, 4), "sm80")
    with pytest.raises(UsageError, match="sm80"):
        pack24(torch.zeros(1, 4), "sm8")


@pytest.mark.parametrize("layout", MULTIPLES)
@pytest.mark.parametrize("shape", [(32, 64), (5, 100)])
def test_without_a_gpu_activation_selection_and_packing_are_one_after_the_other(
    layout: str, shape: tuple[int, int]
) -> None:
    y1 = torch.randn(shape).half()
    packed = pack_activations(y1, layout)
    expected = pack24(y1.relu().square() * select24(y1), layout)
    assert packed.shape == shape
    assert torch.equal(packed.values.float(), expected.values.float())
    assert torch.equal(packed.meta, expected.meta)
    assert ((unpack24(packed) != 0) <= (select24(y1) & (y1 > 0))).all()

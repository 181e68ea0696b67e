"""Packed 2:4 matrices come back exactly; the bytes are those of torch's converter where it has one."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.errors import UsageError
from tenfold.nn.pack24 import ORDERS, pack24, unpack24
from tenfold.nn.sparse24 import select24

KINDS = {"sm80": torch.bfloat16, "sm90_fp8": torch.float8_e4m3fn, "sm90_16bit": torch.float16}


def sparse(rows: int, columns: int, kind: torch.dtype, seed: int = 0, share: float = 0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(rows, columns, generator=generator)
    y = torch.where(select24(y) & (torch.rand(y.shape, generator=generator) < share), y, 0.0)
    return y.to(kind)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(ORDERS)),
    st.integers(1, 140),
    st.integers(1, 40).map(lambda n: 4 * n),
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_unpacking_gives_back_every_value(layout: str, rows: int, columns: int, seed: int, share: float) -> None:
    y = sparse(rows, columns, KINDS[layout], seed, share)
    packed = pack24(y, layout)
    assert packed.values.shape[1] * packed.values.shape[0] * 2 == packed.meta.numel() * 8
    back = unpack24(packed)
    assert back.dtype == y.dtype
    assert back.float().equal(y.float())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (64, 128), (128, 96)])
def test_sm80_bytes_are_those_of_torch(kind: torch.dtype, rows: int, columns: int) -> None:
    from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

    y = sparse(rows, columns, kind, share=0.7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values, meta = sparse_semi_structured_from_dense_cutlass(y)
    packed = pack24(y, "sm80")
    assert packed.values.equal(values)
    assert packed.meta.view(torch.int16).equal(meta.flatten())


@pytest.mark.parametrize(
    ("group", "code"),
    [
        ([1, 1, 0, 0], 0b0100), ([1, 0, 1, 0], 0b1000), ([1, 0, 0, 1], 0b1100), ([0, 1, 1, 0], 0b1001),
        ([0, 1, 0, 1], 0b1101), ([0, 0, 1, 1], 0b1110), ([1, 0, 0, 0], 0b1000), ([0, 1, 0, 0], 0b1001),
        ([0, 0, 1, 0], 0b1110), ([0, 0, 0, 1], 0b1110), ([0, 0, 0, 0], 0b1110),
    ],
)  # fmt: skip
def test_the_code_of_every_pattern(group: list[int], code: int) -> None:
    packed = pack24(torch.tensor([group], dtype=torch.float32).to(torch.float8_e4m3fn), "sm90_fp8")
    assert int(packed.meta[0]) & 15 == code


def test_fp8_and_16_bit_nibbles_stand_where_the_layouts_say() -> None:
    """One value in the last row and group of the second tile, found at the byte that the formula gives."""
    y = torch.zeros(128, 256)
    y[70, 201] = 1.0  # element 1 of group 50: code 1001 where the empty groups have 1110
    fp8 = pack24(y.to(torch.float8_e4m3fn), "sm90_fp8").meta
    assert fp8[1 * 128 * 16 + 70 * 16 + (201 % 128) // 8] == 0b1110_1001
    assert int((fp8 != 0b1110_1110).sum()) == 1
    wide = pack24(y.half(), "sm90_16bit").meta
    r, g = 70 % 16, (201 % 32) // 4
    c8, p = g // 2, g % 2
    byte = (
        (70 // 64) * 8 * 256 + (201 // 32) * 256 + ((70 % 64) // 16) * 64 + (r % 8) * 8 + c8 % 2 * 4 + p * 2 + c8 // 2
    )
    assert wide[byte] == (0b1110_1001 if r // 8 == 0 else 0b1001_1110)
    assert int((wide != 0b1110_1110).sum()) == 1


def test_minus_zero_is_no_value_and_nan_is_one() -> None:
    y = torch.tensor([[-0.0, 1.0, -0.0, 2.0], [math.nan, -0.0, -0.0, -0.0]], dtype=torch.bfloat16)
    packed = pack24(y, "sm80")
    assert packed.values[0, :2].tolist() == [1, 2]
    back = unpack24(packed)
    assert back[0].tolist() == [0, 1, 0, 2]
    assert not back[0].signbit().any()
    assert back[1, 0].isnan()


def test_what_cannot_be_packed_is_refused() -> None:
    y = sparse(32, 32, torch.bfloat16)
    with pytest.raises(UsageError, match="Did you mean 'sm80'"):
        pack24(y, "sm8")
    with pytest.raises(UsageError, match="float8_e4m3fn, and this is bfloat16"):
        pack24(y, "sm90_fp8")
    with pytest.raises(UsageError, match="select24 first"):
        pack24(torch.ones(1, 4, dtype=torch.bfloat16), "sm80")

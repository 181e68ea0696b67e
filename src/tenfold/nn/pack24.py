"""Packed 2:4 matrices: two values of every four and where they stood, in the byte orders of three matrix units.

    packed = pack24(y, "sm80")            y (rows, columns) holds at most 2 values that are not zero in every 4 of a row
    unpack24(packed)                      y again

A group of four is a nibble i0 | i1 << 2 of the indices i0 < i1 of its two values. With fewer than two the codes are those
of the released compressors: only element 0 -> (0, 2), only 1 -> (1, 2), else (2, 3). What differs between the layouts is
where a nibble stands:

    sm80         16-bit values; rows of 32 interleaved by 8, 2 x 2 blocks swizzled, columns in pairs (CUTLASS)
    sm90_fp8     8-bit values; 16 bytes of a row for every 128 columns
    sm90_16bit   16-bit values; derived from the unit's fragments and not compared with a device yet

Rows and columns are filled up with zeros to what a layout needs; `shape` remembers what was given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tenfold.errors import UsageError, unknown_name

GROUP = 4


@dataclass(frozen=True)
class Packed24:
    """values (rows, columns / 2) and meta (rows * columns / 8 bytes) of the filled-up matrix; `shape` is the one given.
    `scale` (rows, 1) belongs to quantised values and is carried along."""

    values: Tensor
    meta: Tensor
    scale: Tensor | None
    layout: str
    shape: tuple[int, int]


@dataclass(frozen=True)
class _Order:
    """Multiples that rows and columns are filled up to, bytes of a value, and the place of a nibble:
    place(row, group, rows, columns) -> (byte, 0 for its low half or 1)."""

    rows: int
    columns: int
    value_bytes: int
    place: Callable[[Tensor, Tensor, int, int], tuple[Tensor, Tensor]]


def pack24(y: Float[Tensor, "r c"], layout: str, scale: Float[Tensor, "r 1"] | None = None) -> Packed24:
    """Raises UsageError for an unknown layout, another number format than the layout's, or a group with more than two
    values: a compressor would drop one without a word."""
    order = _order(layout)
    if y.element_size() != order.value_bytes:
        kind = "float8_e4m3fn" if order.value_bytes == 1 else "bfloat16 or float16"
        raise UsageError(f"layout {layout} packs {kind}, and this is {str(y.dtype).removeprefix('torch.')}.")
    filled = _filled(y, order)
    groups = filled.unflatten(1, (-1, GROUP))
    there = groups.float() != 0  # NaN is a value, -0.0 is none
    if bool((there.sum(-1) > 2).any()):
        raise UsageError("a group of four holds more than two values: choose them with select24 first.")
    first, second = _indices(there)
    pairs = torch.stack([first, second], -1)
    # Bytes are gathered, because not every operation knows every 8-bit format; + 0.0 elsewhere turns -0.0 into 0.0.
    bits = _bits(torch.where(there, groups.float(), 0.0).to(y.dtype))
    values = bits.gather(-1, pairs).flatten(1).view(y.dtype)
    meta = torch.zeros(groups.shape[0] * groups.shape[1] // 2, dtype=torch.uint8, device=y.device)
    byte, half = _places(order, filled.shape[0], filled.shape[1], y.device)
    meta.index_put_((byte.flatten(),), ((first | second << 2) << 4 * half).flatten().byte(), accumulate=True)
    return Packed24(values, meta, scale, layout, (y.shape[0], y.shape[1]))


def unpack24(packed: Packed24) -> Float[Tensor, "r c"]:
    """The matrix as it was given to `pack24` (-0.0 comes back as 0.0)."""
    order = _order(packed.layout)
    rows, half_columns = packed.values.shape
    byte, half = _places(order, rows, 2 * half_columns, packed.values.device)
    nibbles = packed.meta[byte].long() >> 4 * half & 15
    pairs = torch.stack([nibbles & 3, nibbles >> 2], -1)
    bits = _bits(packed.values).unflatten(1, (-1, 2))
    whole = bits.new_zeros(*nibbles.shape, GROUP).scatter_(-1, pairs, bits)
    return whole.flatten(1).view(packed.values.dtype)[: packed.shape[0], : packed.shape[1]]


def _order(layout: str) -> _Order:
    if layout not in ORDERS:
        raise unknown_name("2:4 layout", layout, ORDERS)
    return ORDERS[layout]


def _filled(y: Tensor, order: _Order) -> Tensor:
    rows, columns = -y.shape[0] % order.rows, -y.shape[1] % order.columns
    return F.pad(_bits(y), (0, columns, 0, rows)).view(y.dtype) if rows or columns else y.contiguous()


def _bits(y: Tensor) -> Tensor:
    """The same memory as whole numbers."""
    return y.contiguous().view(torch.uint8 if y.element_size() == 1 else torch.int16)


def _indices(there: Bool[Tensor, "r g 4"]) -> tuple[Int[Tensor, "r g"], Int[Tensor, "r g"]]:
    """i0 and i1 of every group."""
    a, b, _, d = (part.long() for part in there.unbind(-1))
    # The first value stands at 0, at 1, or else 2 is named, which is right for 2 and for (2, 3), and free for none.
    first = torch.where(a == 1, 0, torch.where(b == 1, 1, 2))
    # The last one: 1 after 0, 3 where there is one, else 2; after a first of 2 always 3.
    second = torch.where(a * b == 1, 1, torch.where((d == 1) | (first == 2), 3, 2))
    return first, second


def _places(order: _Order, rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    row = torch.arange(rows, device=device)[:, None]
    group = torch.arange(columns // GROUP, device=device)[None]
    byte, half = order.place(row, group, rows, columns)
    shape = (rows, columns // GROUP)
    return byte.expand(shape), half.expand(shape)


def _sm80(row: Tensor, group: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    word = group // GROUP  # four nibbles to a 16-bit word
    to = row // 32 * 32 + row % 8 * 4 + row % 32 // 8
    swap = ((to % 2 == 0) & (word % 2 == 1)).long() - ((to % 2 == 1) & (word % 2 == 0)).long()
    to, word = to + swap, word - swap
    at = word // 2 * rows * 2 + to * 2 + word % 2
    return at * 2 + group % GROUP // 2, group % 2


def _sm90_fp8(row: Tensor, group: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    return group // 32 * rows * 16 + row * 16 + group % 32 // 2, group % 2


def _sm90_16bit(row: Tensor, group: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    inner = group % 8
    pair, parity = inner // 2, inner % 2
    tile = row // 64 * 8 * columns + group // 8 * 256 + row % 64 // 16 * 64
    return tile + row % 8 * 8 + pair % 2 * 4 + parity * 2 + pair // 2, row % 16 // 8


ORDERS: dict[str, _Order] = {
    "sm80": _Order(32, 32, 2, _sm80),
    "sm90_fp8": _Order(64, 128, 1, _sm90_fp8),
    "sm90_16bit": _Order(64, 32, 2, _sm90_16bit),
}

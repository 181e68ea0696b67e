"""2:4 operands as sparse matrix units read them: two values of every four, and where they stood.

    packed = pack24(y, "sm80")                   y (rows, cols) with at most 2 numbers of every 4 along a row not zero
    unpack24(packed)                             y again
    packed = pack_activations(y1, "sm90_fp8")    activation, selection and packing at once

A group's places i0 < i1 are the nibble i0 | i1 << 2. With fewer than two numbers: only element 0 is (0, 2), only element
1 is (1, 2), anything else (2, 3). The order of nibbles is the layout's:

    sm80         16-bit values; int16 metadata, reordered as CUTLASS 2 and torch's converter do
    sm90_fp8     e4m3 values, one scale per row
    sm90_16bit   16-bit values; derived from the documented fragment order and never compared on a device

Rows and columns are filled up with zeros to the layout's multiples. -0.0 becomes 0.0: a compressor may count it as a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tenfold.errors import UsageError, unknown_name
from tenfold.kernels.native import triton_refused
from tenfold.nn.sparse24 import quantize_rows, select24

MULTIPLES = {"sm80": (32, 32), "sm90_fp8": (64, 128), "sm90_16bit": (64, 32)}  # of rows and of columns


@dataclass(frozen=True)
class Packed24:
    """values (R, C / 2) and meta, for the filled-up sizes R, C; `scale` (R, 1) of fp8; `shape` is (rows, cols) of y."""

    values: Tensor
    meta: Tensor
    scale: Tensor | None
    layout: str
    shape: tuple[int, int]


def pack24(y: Float[Tensor, "rows cols"], layout: str) -> Packed24:
    """Raises UsageError for an unknown layout, or for more than 2 numbers in a group (mask them with `select24`)."""
    if layout not in MULTIPLES:
        raise unknown_name("2:4 layout", layout, MULTIPLES)
    shape = (y.shape[0], y.shape[1])
    row_multiple, col_multiple = MULTIPLES[layout]
    y = F.pad(y + 0.0, (0, -shape[1] % col_multiple, 0, -shape[0] % row_multiple))
    groups = y.unflatten(1, (-1, 4))
    m0, m1, _, m3 = (used := groups != 0).unbind(-1)
    if bool((used.sum(-1) > 2).any()):
        raise UsageError("more than 2 of 4 neighbours are not zero. Mask the operand first: y * select24(y).")
    first = torch.where(m0, 0, torch.where(m1, 1, 2))
    second = torch.where(m0 & m1, 1, torch.where((~m0 & ~m1) | m3, 3, 2))
    values = groups.gather(-1, torch.stack((first, second), -1)).flatten(1)
    nibbles = torch.empty(first.numel(), dtype=torch.uint8, device=y.device)
    nibbles[nibble_places(layout, y.shape[0], y.shape[1]).to(y.device)] = (
        (first | second << 2).flatten().to(torch.uint8)
    )
    meta = nibbles[0::2] | nibbles[1::2] << 4
    scale = None
    if layout == "sm90_fp8":
        values, scale = quantize_rows(values)
    return Packed24(values, meta.view(torch.int16) if layout == "sm80" else meta, scale, layout, shape)


def pack_activations(y1: Float[Tensor, "rows cols"], layout: str) -> Packed24:
    """relu(y1)^2 with 2 of every 4 features kept, packed: in one pass over y1 where CUDA and Triton are, for the layouts sm80
    and sm90_fp8."""
    if y1.is_cuda and not triton_refused() and layout in ("sm80", "sm90_fp8"):
        return fused(y1, layout)
    return pack24(y1.relu().square() * select24(y1), layout)


def fused(y1: Float[Tensor, "rows cols"], layout: str) -> Packed24:
    """`pack_activations` by the Triton kernel."""
    from tenfold.kernels.sparse24_triton import pack

    row_multiple, col_multiple = MULTIPLES[layout]
    rows, cols = y1.shape
    fp8 = layout == "sm90_fp8"
    filled = rows + -rows % row_multiple, cols + -cols % col_multiple
    values, meta, scale = pack(y1.contiguous(), *filled, fp8=fp8)
    return Packed24(values, meta if fp8 else meta.view(torch.int16), scale, layout, (rows, cols))


def unpack24(packed: Packed24) -> Float[Tensor, "rows cols"]:
    """The operand, dense; of fp8 its quantised values times their scale, in fp32."""
    values = packed.values
    if packed.scale is not None:
        values = values.float() * packed.scale
    rows, cols = values.shape[0], 2 * values.shape[1]
    meta = packed.meta.view(torch.uint8)
    nibbles = torch.stack((meta & 15, meta >> 4), -1).flatten()[
        nibble_places(packed.layout, rows, cols).to(meta.device)
    ]
    index = torch.stack((nibbles & 3, nibbles >> 2), -1).long().view(rows, cols // 4, 2)
    y = values.new_zeros(rows, cols // 4, 4).scatter_(-1, index, values.unflatten(1, (-1, 2)))
    return y.flatten(1)[: packed.shape[0], : packed.shape[1]]


@cache
def nibble_places(layout: str, rows: int, cols: int) -> Int[Tensor, " groups"]:
    """Where the nibble of every group goes, for groups in the order of (row, group of the row). Nibble 2 b is the low half
    of byte b."""
    row = torch.arange(rows)[:, None]
    col = torch.arange(0, cols, 4)[None]
    if layout == "sm80":
        # int16 elements of 4 groups: rows are interleaved by 8 inside 32, then 2 x 2 blocks of elements are transposed
        element = col // 16
        turned = row // 32 * 32 + row % 8 * 4 + row % 32 // 8
        place = element // 2 * rows * 2 + (turned - turned % 2 + element % 2) * 2 + turned % 2
        return (place * 4 + col % 16 // 4).flatten()
    if layout == "sm90_fp8":
        byte = col // 128 * rows * 16 + row * 16 + col % 128 // 8
        return (byte * 2 + col % 8 // 4).flatten()
    group, r = col % 32 // 4, row % 16
    pair = group // 2
    byte = row // 64 * 8 * cols + col // 32 * 256 + row % 64 // 16 * 64 + r % 8 * 8
    byte = byte + pair % 2 * 4 + group % 2 * 2 + pair // 2
    return (byte * 2 + r // 8).flatten()

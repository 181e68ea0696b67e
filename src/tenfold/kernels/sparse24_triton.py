"""2:4 activation sparsity in Triton: Squared-ReLU, selection of 2 of 4, scale, cast and metadata in one pass over Y1.

Imported only where CUDA and Triton are (kernels/native.py). One program works on one row. The largest number of a row is the
largest of its group and so always kept: the scale of a row needs no selection first. The layouts are pack24.py's.

    R, C rows and columns filled up to the layout's multiples
"""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false, reportArgumentType=false
from __future__ import annotations

import torch
import triton  # pyright: ignore
import triton.language as tl  # pyright: ignore
from jaxtyping import Float
from torch import Tensor

GROUPS = 256  # groups of 4 columns that a program takes at once


def pack(
    y1: Float[Tensor, "rows cols"], rows: int, cols: int, fp8: bool
) -> tuple[Tensor, Tensor, Float[Tensor, "rows 1"] | None]:
    """values (R, C / 2), metadata and, with `fp8`, the scale of every row (layout sm90_fp8; otherwise sm80)."""
    device = y1.device
    values = torch.empty(rows, cols // 2, dtype=torch.float8_e4m3fn if fp8 else y1.dtype, device=device)
    meta = torch.empty(rows * cols // 8, dtype=torch.uint8, device=device)
    scale = torch.empty(rows, 1, device=device) if fp8 else None
    _pack[(rows,)](
        y1,
        values,
        meta if fp8 else meta.view(torch.int16),
        scale if scale is not None else values,
        y1.shape[0],
        y1.shape[1],
        y1.stride(0),
        rows,
        cols,
        FP8=fp8,
        GROUPS=GROUPS,
    )
    return values, meta, scale


@triton.jit
def _load(y1, row, group, part, rows, cols, stride):
    col = group * 4 + part
    y = tl.load(y1 + row * stride + col, mask=col < tl.where(row < rows, cols, 0), other=float("-inf"))
    return y.to(tl.float32)


@triton.jit
def _beats(later, earlier):
    """Whether a later number wins over an earlier one: NaN above all, of equal ones the earlier."""
    return ((later > earlier) | (later != later)) & (earlier == earlier)


@triton.jit
def _two_of(a, b, c):
    return (a & b) | (c & (a | b))


@triton.jit
def _squared(y, kept, kind: tl.constexpr):
    """Rounded to the operand's type before its zeros are looked for: what underflows is not a value."""
    positive = tl.where(y < 0, 0.0, y)  # NaN stays
    return tl.where(kept, positive * positive, 0.0).to(kind).to(tl.float32)


@triton.jit
def _pick(place, v0, v1, v2, v3):
    return tl.where(place == 0, v0, tl.where(place == 1, v1, tl.where(place == 2, v2, v3)))


@triton.jit
def _pack(y1, values, meta, scale, rows, cols, stride, R, C, FP8: tl.constexpr, GROUPS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    kind: tl.constexpr = y1.dtype.element_ty
    row_scale = 1.0
    if FP8:
        largest = tl.zeros([GROUPS], tl.float32)
        for start in range(0, C // 4, GROUPS):
            group = start + tl.arange(0, GROUPS)
            for part in tl.static_range(4):
                largest = tl.maximum(largest, _load(y1, row, group, part, rows, cols, stride))
        top = tl.max(largest, 0)
        row_scale = top * top / 448.0
        row_scale = tl.where(row_scale == 0, 1.0, row_scale)
        tl.store(scale + row, row_scale)
    for start in range(0, C // 4, GROUPS):
        group = start + tl.arange(0, GROUPS)
        inside = group < C // 4
        a0 = _load(y1, row, group, 0, rows, cols, stride)
        a1 = _load(y1, row, group, 1, rows, cols, stride)
        a2 = _load(y1, row, group, 2, rows, cols, stride)
        a3 = _load(y1, row, group, 3, rows, cols, stride)
        s10, s20, s30 = _beats(a1, a0), _beats(a2, a0), _beats(a3, a0)
        s21, s31, s32 = _beats(a2, a1), _beats(a3, a1), _beats(a3, a2)
        v0 = _squared(a0, _two_of(~s10, ~s20, ~s30), kind)
        v1 = _squared(a1, _two_of(s10, ~s21, ~s31), kind)
        v2 = _squared(a2, _two_of(s20, s21, ~s32), kind)
        v3 = _squared(a3, _two_of(s30, s31, s32), kind)
        m0, m1, m3 = v0 != 0, v1 != 0, v3 != 0
        first = tl.where(m0, 0, tl.where(m1, 1, 2))
        second = tl.where(m0 & m1, 1, tl.where(((v0 == 0) & (v1 == 0)) | m3, 3, 2))
        low, high = _pick(first, v0, v1, v2, v3) / row_scale, _pick(second, v0, v1, v2, v3) / row_scale
        at = values + row * (C // 2) + group * 2
        tl.store(at, low.to(values.dtype.element_ty), mask=inside)
        tl.store(at + 1, high.to(values.dtype.element_ty), mask=inside)
        nibble = first | (second << 2)
        if FP8:
            joined = tl.sum(tl.reshape(nibble << (4 * (group % 2)), [GROUPS // 2, 2]), 1)
            byte = start // 2 + tl.arange(0, GROUPS // 2)
            place = byte // 16 * R * 16 + row * 16 + byte % 16
            tl.store(meta + place, joined.to(tl.uint8), mask=byte < C // 8)
        else:
            joined = tl.sum(tl.reshape(nibble << (4 * (group % 4)), [GROUPS // 4, 4]), 1)
            element = start // 4 + tl.arange(0, GROUPS // 4)
            turned = row // 32 * 32 + row % 8 * 4 + row % 32 // 8
            place = element // 2 * R * 2 + (turned - turned % 2 + element % 2) * 2 + turned % 2
            tl.store(meta + place, joined.to(tl.int16), mask=element < C // 16)

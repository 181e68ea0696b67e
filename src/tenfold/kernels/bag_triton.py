"""The bag's kernels on a GPU, in Triton: sums of rows, and products with rows.

Imported only where CUDA and Triton are (kernels/native.py). One program works on one token and one block of columns; rows are
read whole by neighbouring lanes, sums are fp32, nothing is added atomically. The gradient of the table is `sums` again
over sorted ids (bag.py), which needs no third kernel.

    T tokens   B rows read by a token   K rows   D width
"""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import torch
import triton  # pyright: ignore
import triton.language as tl  # pyright: ignore
from jaxtyping import Float, Int
from torch import Tensor

COLUMNS = 128  # of a program
UNROLLED = 4  # rows that a program asks for at once


def sums(table: Float[Tensor, "k d"], index: Int[Tensor, "t b"], weight: Float[Tensor, "t b"]) -> Float[Tensor, "t d"]:
    """y[t] = sum_j weight[t, j] table[index[t, j]]."""
    (t, b), d = index.shape, table.shape[1]
    out = torch.empty(t, d, dtype=table.dtype, device=table.device)
    _sums[(t, triton.cdiv(d, COLUMNS))](
        table, index, weight, out, b, d, table.stride(0), COLUMNS=COLUMNS, UNROLLED=UNROLLED, num_warps=1
    )
    return out


def dots(table: Float[Tensor, "k d"], index: Int[Tensor, "t b"], x: Float[Tensor, "t d"]) -> Float[Tensor, "t b"]:
    """s[t, j] = table[index[t, j]] . x[t]."""
    (t, b), d = index.shape, table.shape[1]
    out = torch.empty(t, b, dtype=x.dtype, device=x.device)
    _dots[(t, b)](table, index, x, out, b, d, table.stride(0), COLUMNS=COLUMNS, num_warps=1)
    return out


@triton.jit
def _sums(table, index, weight, out, b, d, stride, COLUMNS: tl.constexpr, UNROLLED: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < d
    total = tl.zeros([COLUMNS], dtype=tl.float32)
    for start in range(0, b, UNROLLED):
        for step in tl.static_range(UNROLLED):
            j = start + step
            present = j < b
            row = tl.load(index + token * b + j, mask=present, other=0).to(tl.int64)
            share = tl.load(weight + token * b + j, mask=present, other=0.0).to(tl.float32)
            values = tl.load(table + row * stride + columns, mask=inside & present, other=0.0).to(tl.float32)
            total += share * values
    tl.store(out + token * d + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _dots(table, index, x, out, b, d, stride, COLUMNS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1)
    row = tl.load(index + token * b + j).to(tl.int64)
    total = tl.zeros([COLUMNS], dtype=tl.float32)
    for start in range(0, d, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = columns < d
        values = tl.load(table + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
        total += values * tl.load(x + token * d + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * b + j, tl.sum(total, axis=0).to(out.dtype.element_ty))

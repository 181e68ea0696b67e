"""Paged attention in Triton: keys are read from the KV cache where they lie, and the lengths are read on the device.

    store(k, v, keys, values, places)                                   the new rows into the pool
    y = attend(q, keys, values, tables, size, prefix, mask)             what inference/device_pages.py's attend_paged computes

A program takes the queries of all heads that share keys, and one of SPLITS stretches of a request's rows, so that a single
request keeps the whole device busy; a second kernel merges the stretches by their log-sum-exp (arXiv 2205.14135, section 3;
splitting as in flash-decoding). The grid depends on no length, so both can be part of a CUDA graph.

Imported only where CUDA and Triton are (kernels/native.py), and by its test in Triton's interpreter.

    B requests   N new rows of each   S rows under the mask   P pages of a table   H heads   G key/value heads   D head width
"""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import torch
import triton  # pyright: ignore
import triton.language as tl  # pyright: ignore
from jaxtyping import Bool, Float, Int
from torch import Tensor

KEYS = 64  # rows that a program takes at once
QUERIES = 64  # at most, of one program: heads of a group times new rows
PROGRAMS = 256  # about twice the multiprocessors of a large GPU
MOST_SPLITS = 64


def store(
    k: Float[Tensor, "b g n d"],
    v: Float[Tensor, "b g n d"],
    keys: Float[Tensor, "g slots d"],
    values: Float[Tensor, "g slots d"],
    places: Int[Tensor, "b n"],
) -> None:
    """Writes the new rows to their places in the pool."""
    batch, groups, rows, width = k.shape
    _store[(batch * rows, groups)](
        k,
        v,
        keys,
        values,
        places,
        rows,
        keys.stride(0),
        values.stride(0),
        *k.stride(),
        *v.stride(),
        D=width,
        WIDTH=triton.next_power_of_2(width),
    )


def attend(
    q: Float[Tensor, "b h n d"],
    keys: Float[Tensor, "g slots d"],
    values: Float[Tensor, "g slots d"],
    tables: Int[Tensor, "b p"],
    size: int,
    prefix: Int[Tensor, " b"],
    mask: Bool[Tensor, "n s"],
    lows: Int[Tensor, "b n"] | None = None,
) -> Float[Tensor, "b h n d"]:
    """See `attend_paged` in inference/device_pages.py."""
    batch, heads, rows, width = q.shape
    groups = keys.shape[0]
    repeat = heads // groups
    queries = max(16, min(QUERIES, triton.next_power_of_2(repeat * rows)))
    blocks = triton.cdiv(repeat * rows, queries)
    splits = min(MOST_SPLITS, triton.next_power_of_2(max(1, PROGRAMS // (batch * groups * blocks))))
    parts = torch.empty(batch, heads, rows, splits, width, device=q.device)
    lse = torch.empty(batch, heads, rows, splits, device=q.device)
    seen = mask.to(torch.uint8)
    wide = triton.next_power_of_2(width)
    _attend[(batch * groups, blocks, splits)](
        q,
        keys,
        values,
        tables,
        prefix,
        seen,
        prefix if lows is None else lows,
        parts,
        lse,
        width**-0.5,
        groups,
        repeat,
        rows,
        mask.shape[1],
        size,
        tables.stride(0),
        keys.stride(0),
        values.stride(0),
        *q.stride(),
        D=width,
        WIDTH=wide,
        QUERIES=queries,
        KEYS=KEYS,
        SPLITS=splits,
        WINDOWED=lows is not None,
    )
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    _merge[(batch * heads * rows,)](parts, lse, out, D=width, WIDTH=wide, SPLITS=splits)
    return out


@triton.jit
def _store(
    k,
    v,
    keys,
    values,
    places,
    rows,
    keys_group,
    values_group,
    k_batch,
    k_group,
    k_row,
    k_column,
    v_batch,
    v_group,
    v_row,
    v_column,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
):
    item, group = tl.program_id(0), tl.program_id(1).to(tl.int64)
    batch, row = item // rows, item % rows
    place = tl.load(places + item).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < D
    new_k = tl.load(k + batch * k_batch + group * k_group + row * k_row + column * k_column, mask=inside)
    new_v = tl.load(v + batch * v_batch + group * v_group + row * v_row + column * v_column, mask=inside)
    tl.store(keys + group * keys_group + place * D + column, new_k.to(keys.dtype.element_ty), mask=inside)
    tl.store(values + group * values_group + place * D + column, new_v.to(values.dtype.element_ty), mask=inside)


@triton.jit
def _attend(
    q,
    keys,
    values,
    tables,
    prefix,
    mask,
    lows,
    parts,
    lse,
    scale,
    groups,
    repeat,
    rows,
    tail,
    size,
    tables_batch,
    keys_group,
    values_group,
    q_batch,
    q_head,
    q_row,
    q_column,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    batch, group = tl.program_id(0) // groups, (tl.program_id(0) % groups).to(tl.int64)
    split = tl.program_id(2)
    query = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    real = query < repeat * rows
    head, row = group * repeat + query // rows, query % rows
    column = tl.arange(0, WIDTH)
    inside = column < D
    place = batch * q_batch + head * q_head + row * q_row
    wanted = tl.load(q + place[:, None] + column[None] * q_column, mask=real[:, None] & inside[None], other=0.0)
    known = tl.load(prefix + batch)
    begin, end = known * 0, known + tail
    low = row * 0
    if WINDOWED:
        low = tl.load(lows + batch * rows + row, mask=real, other=0).to(tl.int32)
        begin = tl.maximum(tl.load(lows + batch * rows), 0)  # they grow with the row
    share = tl.cdiv(tl.cdiv(end - begin, SPLITS), KEYS) * KEYS
    first = begin + split * share
    last = tl.minimum(first + share, end)
    most = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, WIDTH], tl.float32)
    for start in range(first, last, KEYS):
        key = start + tl.arange(0, KEYS)
        there = key < last
        page = tl.load(tables + batch * tables_batch + key // size, mask=there, other=0).to(tl.int64)
        at = (page * size + key % size) * D
        k = tl.load(
            keys + group * keys_group + at[None, :] + column[:, None], mask=there[None] & inside[:, None], other=0.0
        )
        scores = tl.dot(wanted, k.to(wanted.dtype), input_precision="ieee") * scale
        under = key - known
        shown = tl.load(
            mask + row[:, None] * tail + under[None, :], mask=real[:, None] & there[None] & (under >= 0)[None], other=1
        )
        visible = there[None] & (shown != 0)
        if WINDOWED:
            visible = visible & (key[None] >= low[:, None])
        scores = tl.where(visible, scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp(scores - base[:, None])
        faded = tl.exp(most - base)
        v = tl.load(
            values + group * values_group + at[:, None] + column[None], mask=there[:, None] & inside[None], other=0.0
        )
        total = total * faded + tl.sum(weights, 1)
        sums = sums * faded[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        most = higher
    base = tl.where(most == float("-inf"), 0.0, most)
    out = ((batch * groups * repeat + head) * rows + row).to(tl.int64) * SPLITS + split
    sums = sums / tl.where(total == 0, 1.0, total)[:, None]
    tl.store(parts + out[:, None] * D + column[None], sums, mask=real[:, None] & inside[None])
    tl.store(lse + out, tl.where(total == 0, float("-inf"), base + tl.log(tl.where(total == 0, 1.0, total))), mask=real)


@triton.jit
def _merge(parts, lse, out, D: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr):
    item = tl.program_id(0).to(tl.int64)
    split, column = tl.arange(0, SPLITS), tl.arange(0, WIDTH)
    inside = column < D
    each = tl.load(lse + item * SPLITS + split)
    most = tl.max(each, 0)
    weights = tl.exp(each - tl.where(most == float("-inf"), 0.0, most))
    weights = weights / tl.sum(weights, 0)
    part = tl.load(parts + (item * SPLITS + split)[:, None] * D + column[None], mask=inside[None], other=0.0)
    total = tl.sum(part * weights[:, None], 0)
    tl.store(out + item * D + column, total.to(out.dtype.element_ty), mask=inside)

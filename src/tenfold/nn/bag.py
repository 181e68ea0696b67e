"""Weighted bag of rows, the one kernel under memory layers and sparse decoding, with gradients that hold only the rows
that were read.

    y = bag(table, index, weight)          y[t] = sum_j weight[t, j] table[index[t, j]]          sums in fp32
    s = row_dots(table, index, x)          s[t, j] = table[index[t, j]] . x[t]                   its adjoint

Both are linear maps over the same sparse T x K matrix, so each is the other's backward: d weight of a bag is `row_dots`,
d x of `row_dots` is a bag, and d table is in both cases a bag over the tokens that read each row (Memory Layers at Scale,
arXiv 2412.09764): sort the T B ids, and each run of equal ids is one bag of rows of dY. No atomics, no K x D tensor, and
the same bits every time. The gradient arrives in `table.grad` as a sparse COO tensor; `coalesced` gives it every row
once, also when several layers read one table.

    T tokens   B rows read by a token   K rows of the table   D width   U different rows read
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


class RowGrad(NamedTuple):
    """The gradient of the rows that were read: `rows[u]` belongs to row `ids[u]`; ids rise and none stands twice."""

    ids: Int[Tensor, "u"]
    rows: Float[Tensor, "u d"]


def bag(
    table: Float[Tensor, "k d"],
    index: Int[Tensor, "t b"],
    weight: Float[Tensor, "t b"],
    frozen: Bool[Tensor, "k"] | None = None,
) -> Float[Tensor, "t d"]:
    """Sums of `weight`-ed rows, in the table's type. Rows marked in `frozen` get no gradient, not even a zero one."""
    return _Bag.apply(table, index, weight.to(table.dtype), frozen)


def row_dots(
    table: Float[Tensor, "k d"],
    index: Int[Tensor, "t b"],
    x: Float[Tensor, "t d"],
    frozen: Bool[Tensor, "k"] | None = None,
) -> Float[Tensor, "t b"]:
    """Products of every token with the rows that it reads, in the table's type. `frozen` as in `bag`."""
    return _RowDots.apply(table, index, x.to(table.dtype), frozen)


def bag_backward(
    table: Float[Tensor, "k d"],
    index: Int[Tensor, "t b"],
    weight: Float[Tensor, "t b"],
    grad: Float[Tensor, "t d"],
) -> tuple[RowGrad, Float[Tensor, "t b"]]:
    """Both gradients of `bag` for the gradient `grad` of its result."""
    return row_gradient(index, weight, grad), _dots(table, index, grad)


def row_gradient(index: Int[Tensor, "t b"], weight: Float[Tensor, "t b"], source: Float[Tensor, "t d"]) -> RowGrad:
    """The gradient of a table: `rows[u]` is the sum of `weight[t, j] source[t]` over all (t, j) that read row `ids[u]`."""
    ids, order = index.flatten().sort(stable=True)
    ids, counts = torch.unique_consecutive(ids, return_counts=True)
    wide = _accumulated(source.dtype)
    rows = F.embedding_bag(
        order // max(index.shape[1], 1),
        source.to(wide),
        counts.cumsum(0) - counts,
        mode="sum",
        per_sample_weights=weight.flatten()[order].to(wide),
    )
    return RowGrad(ids, rows.to(source.dtype))


def coalesced(gradient: Tensor) -> Tensor:
    """A sparse gradient with every row once, in rising order. Autograd drops the mark of one that is so already; it is
    found again by looking, which is far cheaper than summing."""
    if gradient.is_coalesced():
        return gradient
    ids, rows = gradient._indices()[0], gradient._values()
    if not bool((ids[1:] > ids[:-1]).all()):
        ids, rows = row_gradient(ids[:, None], rows.new_ones(len(ids), 1), rows)
    return torch.sparse_coo_tensor(ids[None], rows, gradient.shape, is_coalesced=True, check_invariants=False)


def _sums(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    if index.numel() == 0:
        return table.new_zeros(len(index), table.shape[1])
    return F.embedding_bag(index, table, mode="sum", per_sample_weights=weight)


def _dots(table: Tensor, index: Tensor, x: Tensor) -> Tensor:
    """torch's own kernel behind `embedding_bag`: no T x B x D copy of the rows is made."""
    if index.numel() == 0:
        return x.new_zeros(index.shape)
    tokens = torch.arange(len(index), device=index.device)
    starts, owner = tokens * index.shape[1], tokens.repeat_interleave(index.shape[1])
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(x, table, index.flatten(), starts, owner, 0)
    return dots.view(index.shape)


def _accumulated(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _sparse(gradient: RowGrad, table: Tensor, frozen: Tensor | None) -> Tensor:
    ids, rows = gradient
    if frozen is not None:
        kept = ~frozen[ids]
        ids, rows = ids[kept], rows[kept]
    return torch.sparse_coo_tensor(
        ids[None].long(), rows, table.shape, dtype=table.dtype, is_coalesced=True, check_invariants=False
    )


class _Bag(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, weight: Tensor, frozen: Tensor | None) -> Tensor:
        ctx.save_for_backward(table, index, weight, frozen)
        return _sums(table, index, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        table, index, weight, frozen = ctx.saved_tensors
        grad = grad.contiguous()
        rows = _sparse(row_gradient(index, weight, grad), table, frozen) if ctx.needs_input_grad[0] else None
        return rows, None, _dots(table, index, grad) if ctx.needs_input_grad[2] else None, None


class _RowDots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, x: Tensor, frozen: Tensor | None) -> Tensor:
        ctx.save_for_backward(table, index, x, frozen)
        return _dots(table, index, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        table, index, x, frozen = ctx.saved_tensors
        grad = grad.contiguous()
        rows = _sparse(row_gradient(index, grad, x), table, frozen) if ctx.needs_input_grad[0] else None
        return rows, None, _sums(table, index, grad) if ctx.needs_input_grad[2] else None, None

"""Weighted bag of rows, the one kernel under memory layers and sparse decoding, with gradients that hold only the rows
that were read.

    y = bag(table, index, weight)          y[t] = sum_j weight[t, j] table[index[t, j]]          sums in fp32
    s = row_dots(table, index, x)          s[t, j] = table[index[t, j]] . x[t]                   its adjoint
    y = nonzero_bag(table, weight)         y = weight table, reading only rows whose weight is not 0; no gradient

Both are linear maps over the same sparse T x K matrix, so each is the other's backward: d weight of a bag is `row_dots`,
d x of `row_dots` is a bag, and d table is in both cases a bag over the tokens that read each row (Memory Layers at Scale,
arXiv 2412.09764): sort the T B ids, and each run of equal ids is one bag of rows of dY. No atomics, no K x D tensor, and
the same bits every time. The gradient arrives in `table.grad` as a sparse COO tensor; `coalesced` gives it every row
once, also when several layers read one table.

Three backends (`kernels/native.py` says which are there and why one is refused): pure torch, which is always right; bag.cpp on
the processor, which reads each row once in the backward for both gradients; bag_triton.py on a GPU.

    T tokens   B rows read by a token   K rows of the table   D width   U different rows read
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from tenfold.kernels.bag_calls import BagCall, GradientCall, GroupCall
from tenfold.kernels.native import check, fits, large_pages, library, pointer, triton_refused

NATIVE = (torch.float32, torch.bfloat16)  # what bag.cpp takes


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


def nonzero_bag(
    table: Float[Tensor, "k d"], weight: Float[Tensor, "t k"], compiled: bool = True
) -> Float[Tensor, "t d"]:
    """`weight @ table` in the table's type, reading for each token only the rows whose weight is not zero. Token by token,
    so that the order of sums, and with it every bit of a token's result, is its own. For inference: it has no gradient.
    `compiled` False leaves bag.cpp aside.

    In decoding a large product has just swept the caches, and every line of Python here waits for memory: few of them."""
    assert not (torch.is_grad_enabled() and (table.requires_grad or weight.requires_grad)), "it has no gradient"
    if weight.dtype != table.dtype:
        weight = weight.to(table.dtype)
    native = library() if compiled and table.dtype in NATIVE and fits(table, weight) else None
    if native is not None:
        (t, k), d = weight.shape, table.shape[1]
        out = torch.empty(t, d, dtype=table.dtype)
        kernel = native.nonzero_bag_f32 if table.dtype == torch.float32 else native.nonzero_bag_bf16
        kernel(table.data_ptr(), k, d, weight.data_ptr(), t, out.data_ptr(), torch.get_num_threads())
        return out
    if not len(weight):
        return table.new_zeros(0, table.shape[1])
    sums, start, triton = [], _start(table.device), triton_fits(table, weight)
    for row in weight:
        index = row.nonzero().view(-1)
        kept = row.index_select(0, index)
        if triton:
            sums.append(_sums(table, index[None], kept[None]))
        else:  # what F.embedding_bag calls in the end
            sums.append(torch._embedding_bag_forward_only(table, index, start, False, 0, False, kept)[0])
    return sums[0] if len(sums) == 1 else torch.cat(sums)


@cache
def _start(device: torch.device) -> Tensor:
    return torch.zeros(1, dtype=torch.int64, device=device)


def bag_backward(
    table: Float[Tensor, "k d"],
    index: Int[Tensor, "t b"],
    weight: Float[Tensor, "t b"],
    grad: Float[Tensor, "t d"],
) -> tuple[RowGrad, Float[Tensor, "t b"]]:
    """Both gradients of `bag` for the gradient `grad` of its result."""
    gradient, dots = _gradients(table, index, weight, grad)
    assert gradient is not None
    assert dots is not None
    return gradient, dots


def row_gradient(index: Int[Tensor, "t b"], weight: Float[Tensor, "t b"], source: Float[Tensor, "t d"]) -> RowGrad:
    """The gradient of a table: `rows[u]` is the sum of `weight[t, j] source[t]` over all (t, j) that read row `ids[u]`."""
    gradient, _ = _gradients(None, index, weight, source)
    assert gradient is not None
    return gradient


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
    if triton_fits(table, index, weight):
        from tenfold.kernels.bag_triton import sums

        return sums(table, index, weight)
    native = _native(table, index, weight)
    if native is None:
        return F.embedding_bag(index, table, mode="sum", per_sample_weights=weight)
    weight, out = weight.float(), torch.empty(len(index), table.shape[1])
    kernel = native.bag_f32 if table.dtype == torch.float32 else native.bag_bf16
    _run(kernel, table, index, weight, out)
    return out.to(table.dtype)


def _dots(table: Tensor, index: Tensor, x: Tensor) -> Tensor:
    if index.numel() == 0:
        return x.new_zeros(index.shape)
    if triton_fits(table, index, x):
        from tenfold.kernels.bag_triton import dots

        return dots(table, index, x)
    native = _native(table, index, x)
    if native is not None:
        x, out = x.float(), torch.empty(index.shape)
        kernel = native.dots_f32 if table.dtype == torch.float32 else native.dots_bf16
        _run(kernel, table, index, x, out)
        return out.to(table.dtype)
    # torch's own kernel behind `embedding_bag`: no T x B x D copy of the rows is made.
    tokens = torch.arange(len(index), device=index.device)
    starts, owner = tokens * index.shape[1], tokens.repeat_interleave(index.shape[1])
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(x, table, index.flatten(), starts, owner, 0)
    return dots.view(index.shape)


def _gradients(
    table: Tensor | None, index: Tensor, weight: Tensor, source: Tensor, rows: bool = True
) -> tuple[RowGrad | None, Tensor | None]:
    """The gradient of the table (with `rows`), and the products of `source` with the rows read (with `table`)."""
    native = _native(source, index, weight) if source.dtype == torch.float32 and index.numel() else None
    if native is None or (table is not None and not (fits(table) and table.dtype == source.dtype)):
        dots = _dots(table, index, source) if table is not None else None
        return _row_gradient(index, weight, source) if rows else None, dots
    n, (k, d) = index.numel(), (int(index.max()) + 1, source.shape[1])
    order, ids, starts = (torch.empty(n + 1, dtype=torch.int64) for _ in range(3))
    group = GroupCall(index=pointer(index), n=n, k=k, order=pointer(order), ids=pointer(ids), starts=pointer(starts))
    u = check(native.group_rows(ctypes.byref(group)), index, k)
    made = large_pages(torch.empty(u, d)) if rows else None
    dots = torch.empty(index.shape) if table is not None else None
    call = GradientCall(
        table=pointer(table),
        d=d,
        order=pointer(order),
        ids=pointer(ids),
        starts=pointer(starts),
        u=u,
        b=index.shape[1],
        weight=pointer(weight),
        source=pointer(source),
        rows=pointer(made),
        dots=pointer(dots),
        threads=torch.get_num_threads(),
    )
    native.bag_gradients_f32(ctypes.byref(call))
    return RowGrad(ids[:u].clone(), made) if made is not None else None, dots


def _row_gradient(index: Tensor, weight: Tensor, source: Tensor) -> RowGrad:
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


def _native(table: Tensor, index: Tensor, other: Tensor) -> ctypes.CDLL | None:
    """The compiled kernels, where these tensors can be given to them."""
    suits = table.dtype in NATIVE and table.dtype == other.dtype and index.dtype == torch.int64
    return library() if suits and fits(table, index, other) else None


def _run(kernel: Any, table: Tensor, index: Tensor, other: Tensor, out: Tensor) -> None:
    (k, d), (t, b) = table.shape, index.shape
    call = BagCall(
        table=pointer(table),
        k=k,
        d=d,
        index=pointer(index),
        other=pointer(other),
        t=t,
        b=b,
        out=pointer(out),
        threads=torch.get_num_threads(),
    )
    check(kernel(ctypes.byref(call)), index, k)


def triton_fits(*tensors: Tensor) -> bool:
    """Whether the Triton kernels take these."""
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.int64)
    return all(t.is_cuda and t.is_contiguous() and t.dtype in kinds for t in tensors) and not triton_refused()


def _accumulated(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _sparse(gradient: RowGrad | None, table: Tensor, frozen: Tensor | None) -> Tensor | None:
    if gradient is None:
        return None
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
        rows, _, dots, _ = ctx.needs_input_grad
        gradient, d_weight = _gradients(table if dots else None, index, weight, grad, rows)
        return _sparse(gradient, table, frozen), None, d_weight, None


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
        gradient = row_gradient(index, grad, x) if ctx.needs_input_grad[0] else None
        return (
            _sparse(gradient, table, frozen),
            None,
            _sums(table, index, grad) if ctx.needs_input_grad[2] else None,
            None,
        )

"""The bag and its adjoint equal dense autograd in fp64, values and gradients, with rows in place of a dense gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tenfold.kernels.bag import bag, bag_backward, coalesced, nonzero_bag, row_dots


class Densified(torch.autograd.Function):
    """The identity, with a dense gradient: what torch's gradient checker asks for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.to_dense()


def inputs(k: int, d: int, t: int, b: int, kind: str = "any", dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(k * 7919 + d * 31 + t * 7 + b)
    table = torch.randn(k, d, generator=generator, dtype=dtype)
    index = torch.randint(k if kind == "any" else 1, (t, b), generator=generator)
    if kind == "same":
        index = index + k - 1
    return (
        table,
        index,
        torch.randn(t, b, generator=generator, dtype=dtype),
        torch.randn(t, d, generator=generator, dtype=dtype),
    )


def dense(table: Tensor, index: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value and both gradients by torch's autograd, in fp64: the truth that fp32 is measured against."""
    table, weight = (x.double().detach().requires_grad_() for x in (table, weight))
    y = (table[index] * weight[..., None]).sum(1)
    y.backward(grad.double())
    assert table.grad is not None
    assert weight.grad is not None
    return y.detach(), table.grad, weight.grad


def close(ours: Tensor, truth: Tensor, scale: float) -> None:
    torch.testing.assert_close(ours.double(), truth, rtol=1e-6, atol=1e-6 * max(1.0, scale))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 300), st.integers(0, 20), st.integers(0, 9), st.sampled_from(["any", "same"]))
def test_value_and_gradients_equal_dense_autograd(k: int, d: int, t: int, b: int, kind: str) -> None:
    table, index, weight, grad = inputs(k, d, t, b, kind)
    y, d_table, d_weight = dense(table, index, weight, grad)
    table.requires_grad_()
    weight.requires_grad_()
    ours = bag(table, index, weight)
    ours.backward(grad)
    assert table.grad is not None
    assert weight.grad is not None
    assert table.grad.is_sparse
    gradient = coalesced(table.grad)
    assert gradient._indices()[0].equal(index.unique())
    close(ours, y, float(y.abs().max()) if y.numel() else 1.0)
    close(gradient.to_dense(), d_table, float(d_table.abs().max()))
    close(weight.grad, d_weight, d**0.5 * 4)


def test_dots_are_the_adjoint_with_their_own_gradients() -> None:
    table, index, weight, x = inputs(30, 17, 12, 5)
    table.requires_grad_()
    x.requires_grad_()
    row_dots(table, index, x).backward(weight)
    rows, d_x = table.grad, x.grad
    assert rows is not None
    assert d_x is not None
    table.grad = x.grad = None
    (table[index] * x[:, None]).sum(-1).backward(weight)
    assert table.grad is not None
    assert x.grad is not None
    close(rows.to_dense(), table.grad.double(), 20.0)
    close(d_x, x.grad.double(), 20.0)


@pytest.mark.parametrize("function", [bag, row_dots])
def test_gradients_pass_the_numerical_check_in_fp64(function: Any) -> None:
    table, index, weight, x = inputs(6, 3, 4, 5, dtype=torch.float64)
    other = weight if function is bag else x
    table.requires_grad_()
    other.requires_grad_()
    assert torch.autograd.gradcheck(lambda v, w: function(Densified.apply(v), index, w), (table, other))


def test_three_readers_of_one_table_add_up_and_run_to_run_bits_agree() -> None:
    table, index, weight, grad = inputs(20, 8, 30, 4)

    def gradient() -> Tensor:
        values = table.clone().requires_grad_()
        for part in (index, index.flip(0), index.roll(3, 1)):
            bag(values, part, weight).backward(grad)
        assert values.grad is not None
        return coalesced(values.grad).to_dense()

    first = gradient()
    truth = sum(dense(table, part, weight, grad)[1] for part in (index, index.flip(0), index.roll(3, 1)))
    assert isinstance(truth, Tensor)
    close(first, truth, 30.0)
    assert first.equal(gradient())


def test_frozen_rows_are_absent_from_the_gradient_and_the_others_are_not_changed() -> None:
    table, index, weight, grad = inputs(20, 8, 30, 4)
    frozen = torch.zeros(20, dtype=torch.bool)
    frozen[::2] = True
    values = table.clone().requires_grad_()
    bag(values, index, weight, frozen).backward(grad)
    assert values.grad is not None
    assert not frozen[values.grad._indices()[0]].any()
    (ids, rows), _ = bag_backward(table, index, weight, grad)
    assert values.grad._values().equal(rows[~frozen[ids]])


def test_reduced_types_sum_in_fp32() -> None:
    table = torch.full((1, 4), 1.0, dtype=torch.bfloat16)
    index, weight = torch.zeros(1, 1000, dtype=torch.long), torch.full((1, 1000), 1.0, dtype=torch.bfloat16)
    assert bag(table, index, weight).tolist() == [[1000.0] * 4]  # summed in bf16 it would stop at 256
    (_, rows), _ = bag_backward(table, index.T.contiguous(), weight.T.contiguous(), table.expand(1000, 4).contiguous())
    assert rows.tolist() == [[1000.0] * 4]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 40, 300), (5, 7, 1), (3, 64, 33), (0, 8, 4), (2, 1, 64)])
def test_rows_of_weight_zero_are_not_read(compiled: bool, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    t, k, d = shape
    generator = torch.Generator().manual_seed(k)
    table, weight = torch.randn(k, d, generator=generator), torch.randn(t, k, generator=generator)
    weight[torch.rand(t, k, generator=generator) < 0.7] = -0.0  # zero too
    table, weight = table.to(dtype), weight.to(dtype)
    ours = nonzero_bag(table, weight, compiled)
    assert (ours.dtype, ours.shape) == (dtype, (t, d))
    rounding = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours.double(), weight.double() @ table.double(), rtol=rounding, atol=rounding)
    for token in range(t):  # alone, and with every other row spoilt, a token's bits are the same
        spoilt = table.where((weight[token] != 0)[:, None], float("nan"))
        assert nonzero_bag(spoilt, weight[token : token + 1], compiled).equal(ours[token : token + 1])
    if t:
        weight[0, 0] = float("nan")
        assert nonzero_bag(table, weight, compiled)[0].isnan().all()  # a NaN is not zero

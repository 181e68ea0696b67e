"""The bag's kernels compute what dense operations do: on a GPU, and in Triton's interpreter where Triton is."""

from __future__ import annotations

import pytest
import torch

from tenfold.kernels.bag import bag, bag_backward, row_dots


def inputs(t: int, b: int, k: int, d: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return (
        torch.randn(k, d).to(dtype),
        torch.randint(k, (t, b)),
        torch.randn(t, b).to(dtype),
        torch.randn(t, d).to(dtype),
    )


def compare(device: str, with_sums: bool) -> None:
    """`with_sums`: Triton's interpreter (3.9) refuses the mask of that kernel, which joins a block with a single number."""
    from tenfold.kernels import bag_triton

    for t, b, k, d in ((3, 5, 7, 130), (2, 8, 4, 128), (4, 1, 9, 3)):  # not multiples of a program's rows and columns
        for dtype, close in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
            table, index, weight, x = inputs(t, b, k, d, dtype)
            dots = bag_triton.dots(table.to(device), index.to(device), x.to(device))
            expected = (table[index].double() * x[:, None].double()).sum(-1)
            assert dots.dtype == dtype
            torch.testing.assert_close(dots.cpu().double(), expected, rtol=close, atol=close * d**0.5)
            if with_sums:
                sums = bag_triton.sums(table.to(device), index.to(device), weight.to(device))
                expected = (table[index].double() * weight[..., None].double()).sum(1)
                assert sums.dtype == dtype
                torch.testing.assert_close(sums.cpu().double(), expected, rtol=close, atol=close * b)


@pytest.mark.gpu
def test_the_kernels_sum_and_multiply_rows_as_dense_operations_do() -> None:
    compare("cuda", with_sums=True)


def test_the_interpreted_kernel_multiplies_rows_as_dense_operations_do() -> None:
    from needed import package  # here, because this file also runs alone
    from triton_interpreter import interpreted

    package("triton")
    interpreted(__file__)


@pytest.mark.gpu
def test_the_bag_and_its_gradients_on_a_gpu_are_those_on_the_cpu() -> None:
    table, index, weight, grad = inputs(64, 20, 500, 300, torch.float32)
    rows, dots = bag_backward(table, index, weight, grad)
    on_gpu, gpu_dots = bag_backward(table.cuda(), index.cuda(), weight.cuda(), grad.cuda())
    torch.testing.assert_close(on_gpu.rows.cpu(), rows.rows, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gpu_dots.cpu(), dots, rtol=1e-4, atol=1e-4)
    moved = table.cuda(), index.cuda()
    torch.testing.assert_close(bag(*moved, weight.cuda()).cpu(), bag(table, index, weight), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(row_dots(*moved, grad.cuda()).cpu(), row_dots(table, index, grad), rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    compare("cpu", with_sums=False)

"""The fused packing kernel writes the bytes of the reference: on a GPU, and in Triton's interpreter where Triton is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tenfold.nn.pack24 import fused, pack24
from tenfold.nn.sparse24 import select24

SHAPES = [(32, 64), (5, 100), (70, 1300)]
INTERPRETED = [(16, 64), (5, 100), (4, 1300)]  # the interpreter is slow by the row


def inputs(shape: tuple[int, int]) -> Tensor:
    torch.manual_seed(0)
    y1 = torch.randn(shape).half()
    y1[0, :4], y1[1, :3], y1[2, :2], y1[3, 4:8] = 0.0, 1.0, -0.0, -1.0
    return y1


def reference(y1: Tensor, layout: str):
    return pack24(y1.relu().square() * select24(y1), layout)


def compare(device: str, values: bool, shapes: list[tuple[int, int]]) -> None:
    """`values`: of fp8 too; Triton's interpreter (3.9) halves an e4m3 number whose rounding carries into the exponent."""
    for shape in shapes:
        y1 = inputs(shape).to(device)
        for layout, source in (("sm80", y1), ("sm90_fp8", y1.float())):
            packed, expected = fused(source, layout), reference(source, layout)
            assert torch.equal(packed.meta.flatten(), expected.meta.flatten()), (layout, shape)
            if packed.scale is not None and expected.scale is not None:
                torch.testing.assert_close(packed.scale, expected.scale)
            if values or layout == "sm80":
                assert torch.equal(packed.values.float(), expected.values.float()), (layout, shape)


@pytest.mark.gpu
def test_the_kernel_writes_the_bytes_of_the_reference() -> None:
    compare("cuda", values=True, shapes=SHAPES)


def test_the_interpreted_kernel_writes_the_bytes_of_the_reference() -> None:
    from needed import package  # here, because this file also runs alone
    from triton_interpreter import interpreted

    package("triton")
    interpreted(__file__)


if __name__ == "__main__":
    compare("cpu", values=False, shapes=INTERPRETED)

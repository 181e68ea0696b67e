"""Normalisations: RMSNorm equals its formula in every number format, and the scale of its input does not matter."""

from __future__ import annotations

import pytest
import torch

from tenfold.nn.norm import RMSNorm, make_norm


def test_rms_norm_takes_its_mean_in_fp32_and_ignores_the_sign_of_nothing() -> None:
    norm = RMSNorm(8, eps=0.0)
    x = torch.randn(3, 8) * 1e4
    assert torch.allclose(norm(x).square().mean(-1), torch.ones(3), rtol=1e-5)
    assert torch.allclose(norm(x.half()).float(), norm(x), atol=2e-3)  # the squares overflow fp16
    assert isinstance(make_norm("layer", 8, 1e-6), torch.nn.LayerNorm)


def test_rms_norm_forgets_the_scale_and_keeps_the_mean() -> None:
    norm, x = RMSNorm(16, eps=0.0), torch.randn(4, 16) + 3
    torch.nn.init.normal_(norm.weight)
    assert torch.allclose(norm(1000 * x), norm(x), rtol=1e-5, atol=1e-6)
    assert torch.allclose(norm(x) * x.square().mean(-1, keepdim=True).sqrt(), norm.weight * x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_row_of_zeros_stays_zero_and_the_number_format_stays(dtype: torch.dtype) -> None:
    norm = make_norm("rms", 8, 1e-6).to(dtype)
    y = norm(torch.zeros(2, 8, dtype=dtype))
    assert y.dtype == dtype
    assert not y.any()

"""Normalisations: LayerNorm (torch's) and RMSNorm (arXiv 1910.07467), chosen by name in a block's configuration."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

NormKind = Literal["layer", "rms"]


class RMSNorm(nn.Module):
    """x / rms(x) * weight; the mean square is taken in fp32 whatever the input's type (Llama's order of roundings)."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def make_norm(kind: NormKind, dim: int, eps: float) -> nn.Module:
    return nn.LayerNorm(dim, eps=eps) if kind == "layer" else RMSNorm(dim, eps)

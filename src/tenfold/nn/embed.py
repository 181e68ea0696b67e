"""Images to tokens: patch projections, a convolutional stem for small inputs, and learned positions that fit any grid.

ViT (arXiv 2010.11929). The two resize rules of learned positions are DINOv2's released ones, with and without registers.

    B batch   h w patch grid   D width   p patch side in pixels
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """(B, C, h p, w p) -> (B, h w, D): one linear map per patch. The weight has a convolution's shape (D, C, p, p)."""

    def __init__(self, channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.weight = nn.Parameter(torch.empty(dim, channels, patch, patch))
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Float[Tensor, "b c height width"]) -> Float[Tensor, "b n d"]:
        p = self.patch
        # The same products as a convolution with stride p, as one matrix product.
        x = x.unflatten(3, (-1, p)).unflatten(2, (-1, p)).permute(0, 2, 4, 1, 3, 5)
        return F.linear(x.flatten(3).flatten(1, 2), self.weight.flatten(1), self.bias)


class ConvStem(nn.Module):
    """Patches of 8 pixels for small images: 8 x 8 windows at stride 4, then LayerNorm, GELU and a 2 x 2 merge.

    Overlapping windows and one more non-linearity cost little and help where a crop has only 9 to 36 patches.
    """

    patch = 8

    def __init__(self, channels: int, dim: int, width: int = 96) -> None:
        super().__init__()
        self.window = nn.Linear(channels * 64, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.merge = nn.Linear(4 * width, dim)

    def forward(self, x: Float[Tensor, "b c height width"]) -> Float[Tensor, "b n d"]:
        h, w = x.shape[2] // 8, x.shape[3] // 8
        windows = F.unfold(F.pad(x, (2, 2, 2, 2)), 8, stride=4).transpose(1, 2)
        y = F.gelu(self.norm(self.window(windows)))
        y = y.unflatten(1, (h, 2, w, 2)).permute(0, 1, 3, 2, 4, 5).flatten(3)
        return self.merge(y.flatten(1, 2))


PositionRule = Literal["antialias", "offset"]


def resize_positions(
    grid: Float[Tensor, "h0 w0 d"], height: int, width: int, rule: PositionRule
) -> Float[Tensor, "height width d"]:
    """Bicubic resize of learned positions, in fp32.

    antialias: to the exact size, antialiased (DINOv2 with registers).
    offset: by the factor (height + 0.1) / h0, not antialiased (DINOv2 without registers). The 0.1 was a guard against
    rounding, but the kernel samples with the factor it is given, so it moves every value and must be kept.
    """
    if (height, width) == grid.shape[:2]:
        return grid
    planes = grid.float().permute(2, 0, 1)[None]
    if rule == "offset":
        factors = ((height + 0.1) / grid.shape[0], (width + 0.1) / grid.shape[1])
        planes = F.interpolate(planes, scale_factor=factors, mode="bicubic")
    else:
        planes = F.interpolate(planes, size=(height, width), mode="bicubic", antialias=True)
    return planes[0].permute(1, 2, 0).to(grid.dtype)

"""Convolutional blocks: ConvNeXt's residual block and the patch merge between its stages.

ConvNeXt: arXiv 2201.03545, section 2. Tensors are (B, C, H, W) in channels-last memory, where the two linear maps of a
block and its LayerNorm read their input without a copy.

    B batch   C channels   H W sides
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ConvNextBlock(nn.Module):
    """x + gain * down(gelu(up(norm(depthwise(x))))), the depthwise convolution 7 x 7 and the inner width 4 C."""

    def __init__(self, channels: int, layer_scale: float = 1e-6, eps: float = 1e-6) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=eps)
        self.up = nn.Linear(channels, 4 * channels)
        self.down = nn.Linear(4 * channels, channels)
        self.gain = nn.Parameter(torch.full((channels,), layer_scale))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.down(F.gelu(self.up(self.norm(y)))) * self.gain
        return x + y.permute(0, 3, 1, 2)


class PatchMerge(nn.Module):
    """A convolution of kernel and stride `stride`; LayerNorm over the channels before it, or after it (the stem)."""

    def __init__(self, channels: int, out_channels: int, stride: int, norm_first: bool, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.norm = nn.LayerNorm(channels if norm_first else out_channels, eps=eps)
        self.conv = nn.Conv2d(channels, out_channels, stride, stride)

    def forward(self, x: Float[Tensor, "b c height width"]) -> Float[Tensor, "b d h w"]:
        return self.conv(self._normed(x)) if self.norm_first else self._normed(self.conv(x))

    def _normed(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

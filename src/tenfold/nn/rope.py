"""Rotary position embeddings: one table of angles for text, one for the two axes of an image.

RoFormer (arXiv 2104.09864); axial form and its training-time rescaling: DINOv3 (arXiv 2508.10104, section 3.2); length
scaling of Llama 3.1 from its released configuration. The halves of a head are paired: entry i turns with i + D/2
(not interleaved).

    H heads   N tokens   D head width   P patches
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from tenfold.errors import UsageError


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines for the last `len(cos)` tokens of a sequence; tokens before them (CLS, registers) stay as they
    are. cos and sin are (N, D), or (B, 1, N, D) when positions differ by sample."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        prefix = x.shape[-2] - self.cos.shape[-2]
        kept, turned = x[..., :prefix, :], x[..., prefix:, :]
        half = turned.shape[-1] // 2
        swapped = torch.cat([turned[..., half:], turned[..., :half]], dim=-1)
        # A cached property takes a lock, which torch.compile cannot trace (Python 3.11).
        signed = _signed(self.sin) if torch.compiler.is_compiling() else self.signed
        turned = torch.addcmul(turned * self.cos, swapped, signed).to(x.dtype)
        return torch.cat([kept, turned], dim=-2) if prefix else turned

    @cached_property
    def signed(self) -> Float[Tensor, "*b d"]:
        """The sines with the first half negated: what the swapped halves are multiplied with."""
        return _signed(self.sin)

    @cached_property
    def turns(self) -> Complex[Tensor, "n half"]:
        """The same rotation as complex numbers, for pairs that stand side by side; positions shared by the batch."""
        half = self.cos.shape[-1] // 2
        return torch.complex(self.cos[:, :half].float(), self.sin[:, :half].float())


def _signed(sin: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    half = sin.shape[-1] // 2
    return torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)


class AxialRope(nn.Module):
    """Angles of an h x w grid of patches: coordinates in [-1, 1], half of the frequencies for y and half for x.

    periods are a persistent buffer because released files hold them rounded to bf16 and must be used as they are;
    with `recompute` they are computed again in fp32 instead, as ports of those models do.
    """

    periods: Tensor

    def __init__(self, head_dim: int, base: float = 100.0, recompute: bool = False) -> None:
        super().__init__()
        if head_dim % 4:
            raise UsageError(f"head width {head_dim}: axial RoPE needs a multiple of 4.")
        self.base, self.head_dim, self.recompute = base, head_dim, recompute
        self.register_buffer("periods", self.exact(head_dim, base))

    @staticmethod
    def exact(head_dim: int, base: float) -> Float[Tensor, " p"]:
        quarter = head_dim // 4
        return base ** (2 * torch.arange(quarter, dtype=torch.float32) / (head_dim // 2))

    def forward(self, height: int, width: int, rescale: float = 1.0) -> Rotation:
        """Rotation for height * width patches, rows first. `rescale` multiplies both axes (training only)."""
        periods = self.periods.float()
        if self.recompute:
            periods = self.exact(self.head_dim, self.base).to(periods.device)
        y = (torch.arange(height, device=periods.device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=periods.device, dtype=torch.float32) + 0.5) / width
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)
        angles = 2 * math.pi * ((2 * grid - 1) * rescale)[:, :, None] / periods
        angles = angles.flatten(1).tile(2)
        return Rotation(angles.cos(), angles.sin())


@dataclass(frozen=True)
class RopeScaling:
    """How a Llama was stretched past its training length: linear, or Llama 3.1's split by wavelength."""

    kind: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192


class TextRope(nn.Module):
    """Angles of token positions; tables grow on demand."""

    def __init__(self, head_dim: int, theta: float = 10000.0, scaling: RopeScaling | None = None) -> None:
        super().__init__()
        self.head_dim, self.theta, self.scaling = head_dim, theta, scaling or RopeScaling()
        self.cos = self.sin = torch.empty(0, head_dim, device="cpu")  # also in a model that is built without memory
        self.reserved = 0

    def reserve(self, length: int) -> None:
        """Promises that no position on a device reaches `length`: the device is not waited for to learn the largest one."""
        self.reserved = max(self.reserved, length)

    def forward(self, positions: Int[Tensor, "*b n"]) -> Rotation:
        """positions (N,) for the whole batch, or (B, N)."""
        if positions.device.type != "cpu" and self.reserved:
            needed = self.reserved
        else:
            needed = int(positions.max()) + 1 if positions.numel() else 0
        if needed > len(self.cos) or self.cos.device != positions.device:
            length = max(256, 1 << max(0, needed - 1).bit_length())
            frequencies = scaled_frequencies(self.head_dim, self.theta, self.scaling)
            angles = torch.outer(torch.arange(length).float(), frequencies).tile(1, 2)
            self.cos, self.sin = angles.cos().to(positions.device), angles.sin().to(positions.device)
        cos, sin = self.cos[positions], self.sin[positions]
        return Rotation(cos, sin) if positions.ndim == 1 else Rotation(cos[:, None], sin[:, None])


def scaled_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> Float[Tensor, " f"]:
    """theta^(-2i/D), divided by the factor (linear), or blended by wavelength (llama3)."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "llama3":
        wavelength = 2 * math.pi / frequencies
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        keep = ((scaling.original_length / wavelength - low) / (high - low)).clamp(0, 1)
        return frequencies * (keep + (1 - keep) / scaling.factor)
    return frequencies

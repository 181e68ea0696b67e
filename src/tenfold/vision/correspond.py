"""Looking at patch features: the PCA picture that shows what a network groups together.

L images   h w patch grid   D feature width
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor


def pca_map(patch_tokens: Sequence[Float[Tensor, "_ _ d"]], percent: float = 1.0) -> list[Float[Tensor, "_ _ 3"]]:
    """First three principal components of all patches together, each stretched to [0, 1], as one picture per image.

    The components are shared by the images, so a colour means the same in all of them. `percent` of the values at each
    end is clipped, which keeps one odd patch from greying the rest. Signs are fixed (the largest weight of a component
    is positive), so the same features always give the same colours.
    """
    tokens = torch.cat([t.reshape(-1, t.shape[-1]).float() for t in patch_tokens])
    centered = tokens - tokens.mean(0)
    count = min(3, *centered.shape)
    covariance = centered.T @ centered
    _, vectors = torch.linalg.eigh(covariance.double())
    components = vectors[:, -count:].flip(1).float()
    strongest = components.abs().argmax(0)
    components = components * components[strongest, torch.arange(count)].sign()
    projected = F.pad(centered @ components, (0, 3 - count))
    low = torch.quantile(projected, percent / 100, dim=0)
    high = torch.quantile(projected, 1 - percent / 100, dim=0)
    colors = ((projected - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    pictures = colors.split([t.shape[0] * t.shape[1] for t in patch_tokens])
    return [p.reshape(*t.shape[:2], 3) for p, t in zip(pictures, patch_tokens)]


def beside(image: UInt8[Tensor, "height width 3"], picture: Float[Tensor, "h w 3"]) -> UInt8[Tensor, "height wide 3"]:
    """The image and its patch picture enlarged to the same size (nearest: one square per patch), left and right."""
    height, width = image.shape[:2]
    large = F.interpolate(picture.permute(2, 0, 1)[None], size=(height, width), mode="nearest")[0].permute(1, 2, 0)
    gap = torch.full((height, max(2, width // 100), 3), 255, dtype=torch.uint8)
    return torch.cat([image, gap, (large * 255).round().to(torch.uint8)], dim=1)

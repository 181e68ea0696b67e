"""Antialiased bicubic resize of images in grey levels, as torchvision and Pillow do it."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor


def resize(image: UInt8[Tensor, "h w 3"], height: int, width: int) -> UInt8[Tensor, "height width 3"]:
    """Bicubic with antialiasing, in grey levels: within one level of Pillow."""
    if image.shape[:2] == (height, width):
        return image
    x = image.permute(2, 0, 1)[None]
    x = F.interpolate(x, size=(height, width), mode="bicubic", antialias=True)
    return x[0].permute(1, 2, 0).contiguous()

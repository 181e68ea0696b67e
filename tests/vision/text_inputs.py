"""A small text-aligned model for tests: a random vision transformer, a head over it, and a text tower of CLIP's kind."""

from __future__ import annotations

from dataclasses import replace

import torch

from tenfold.vision.backbones.vit import VitConfig
from tenfold.vision.text.aligned import AlignedConfig, TextAligned
from tenfold.vision.text.towers import TextConfig

BACKBONE = VitConfig(
    dim=48, depth=2, heads=2, patch_size=16, registers=2, layer_scale=1.0, fan_in_init=True, image_size=64
)
CONFIG = AlignedConfig(
    dim=48, heads=2, blocks=1, drop_path=0.0, text=TextConfig(dim=32, depth=1, heads=2), backbone=BACKBONE
)


def small_aligned(seed: int = 0, backbone: bool = True) -> TextAligned:
    """With the whole vocabulary of CLIP, so that its tokens may be looked up."""
    torch.manual_seed(seed)
    return TextAligned(CONFIG if backbone else replace(CONFIG, backbone=None)).eval()

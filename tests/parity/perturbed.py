"""Vision transformers with weights at which every parameter matters, for comparison with other implementations."""

from __future__ import annotations

import torch
from torch import Tensor

from tenfold.vision.backbones.vit import VisionTransformer, VitConfig


def perturbed(config: VitConfig, seed: int = 0) -> VisionTransformer:
    torch.manual_seed(seed)
    model = VisionTransformer(config).eval()
    for name, p in model.named_parameters():
        if name.endswith(("norm1.weight", "norm2.weight", "norm.weight")):
            torch.nn.init.normal_(p, 1.0, 0.1)
        elif ".scale" in name:
            torch.nn.init.normal_(p, 0.3, 0.1)
        elif p.ndim < 2:
            torch.nn.init.normal_(p, 0.0, 0.1)
        else:
            torch.nn.init.normal_(p, 0.0, p[0].numel() ** -0.5 if "weight" in name else 0.5)
    return model


def tokens(model: VisionTransformer, images: Tensor, masks: Tensor | None = None) -> Tensor:
    out = model(images, masks)
    return torch.cat([out.cls_token[:, None], out.register_tokens, out.patch_tokens.flatten(1, 2)], dim=1)

"""A folder that `tenfold convert --to timm` writes is a model that timm builds and loads, with the same features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from parity.perturbed import perturbed, tokens
from tenfold.bench.peers import torchvision
from tenfold.data.tensors import save_own
from tenfold.export.weights import convert
from tenfold.vision.backbones.vit import VIT_CONFIGS

pytestmark = pytest.mark.oracle

SIZES = {14: [(518, 518), (154, 350)], 16: [(96, 96), (224, 224), (512, 512), (160, 352)]}


@pytest.mark.parametrize("name", ["dinov3-s", "dinov3-s+", "dinov3-b", "dinov2-s", "dinov2-s-reg"])
@torch.inference_mode()
def test_features_equal_timm(name: str, tmp_path: Path) -> None:
    assert torchvision() is not None, "make oracles"
    import timm  # pyright: ignore[reportMissingImports]

    config = replace(VIT_CONFIGS[name], rope_periods="exact") if name.startswith("dinov3") else VIT_CONFIGS[name]
    model = perturbed(config)
    save_own(tmp_path / "own.safetensors", model.state_dict(), "vit", config)
    folder = convert(tmp_path / "own.safetensors", tmp_path / "timm", to="timm")
    peer = timm.create_model(f"local-dir:{folder}", pretrained=True, dynamic_img_size=True).eval()
    p = config.patch_size
    for height, width in SIZES[p]:
        if config.positions == "offset" and (height, width) != (518, 518):
            continue  # timm has not the 0.1 of the released model without registers
        images = torch.randn(2, 3, height, width)
        theirs = peer.forward_features(images)
        assert (tokens(model, images) - theirs).abs().max() <= (2e-5 if name == "dinov3-s+" else 1e-5), (height, width)

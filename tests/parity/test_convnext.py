"""Our ConvNeXt gives transformers' features, and the plain maths of the paper where transformers has no such output."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, DINOv3ConvNextModel

from tenfold.data.tensors import save_own
from tenfold.errors import UsageError
from tenfold.export.weights import convert
from tenfold.vision.backbones.convnext import CONVNEXT_CONFIGS, ConvNeXt, ConvNextConfig

SIZES = [(224, 224), (160, 352), (96, 96)]


def perturbed(config: ConvNextConfig, seed: int = 0) -> ConvNeXt:
    """Random weights in which every parameter matters, with features of size 1."""
    torch.manual_seed(seed)
    model = ConvNeXt(config).eval()
    for name, p in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.normal_(p, 1.0, 0.1)
        elif name.endswith("gain"):
            torch.nn.init.normal_(p, 0.3, 0.1)
        elif p.ndim < 2:
            torch.nn.init.normal_(p, 0.0, 0.1)
        else:
            torch.nn.init.normal_(p, 0.0, p[0].numel() ** -0.5)
    return model


def tokens(model: ConvNeXt, images: Tensor) -> Tensor:
    out = model(images)
    assert out.register_tokens.shape == (len(images), 0, model.config.dim)
    return torch.cat([out.cls_token[:, None], out.patch_tokens.flatten(1, 2)], dim=1)


@pytest.mark.parametrize(("name", "depths"), [("dinov3-convnext-t", (3, 3, 9, 3)), ("dinov3-convnext-b", (1, 1, 2, 1))])
@torch.inference_mode()
def test_features_equal_transformers(name: str, depths: tuple[int, int, int, int], tmp_path: Path) -> None:
    model = perturbed(replace(CONVNEXT_CONFIGS[name], depths=depths))
    save_own(tmp_path / "own.safetensors", model.state_dict(), "convnext", model.config)
    reference = AutoModel.from_pretrained(convert(tmp_path / "own.safetensors", tmp_path / "hf", to="hf")).eval()
    assert isinstance(reference, DINOv3ConvNextModel)
    for size in [*SIZES, (512, 512)] if name.endswith("-t") else SIZES:
        images = torch.randn(2 if size[0] < 500 else 1, 3, *size)
        ours = tokens(model, images)
        assert 0.5 < ours.square().mean().sqrt() < 2, "the features are not of size 1, so the tolerance says nothing"
        theirs = reference(images)
        assert (ours - theirs.last_hidden_state).abs().max() <= 1e-5
        assert (model.feature(model(images)) - theirs.pooler_output).abs().max() <= 1e-5
        assert (tokens(model.for_inference(), images) - ours).abs().max() <= 1e-5


@torch.inference_mode()
def test_the_map_is_resized_to_the_grid_of_patches_before_the_norm() -> None:
    model = perturbed(ConvNextConfig((1, 1, 1, 1), (8, 12, 16, 20)))
    images = torch.randn(2, 3, 96, 160)
    fine = ConvNeXt(replace(model.config, patch_size=16)).eval()
    fine.load_state_dict(model.state_dict())
    (cells, mean), *_ = model.get_intermediate_layers(images, 1, reshape=True, return_class_token=True, norm=False)
    assert cells.shape == (2, 20, 3, 5)
    resized = F.interpolate(cells, size=(6, 10), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    out = fine(images)
    assert torch.allclose(out.patch_tokens, model.norm(resized), atol=1e-5)
    assert torch.allclose(out.cls_token, model.norm(mean), atol=1e-5)
    assert torch.allclose(out.cls_token, model(images).cls_token, atol=1e-6)  # of the map as it was


@torch.inference_mode()
def test_stages_come_out_as_maps_and_the_last_is_the_output() -> None:
    model = perturbed(ConvNextConfig((1, 1, 1, 1), (8, 12, 16, 20)))
    images = torch.randn(1, 3, 64, 96)
    maps = model.get_intermediate_layers(images, 4, reshape=True)
    assert [tuple(m.shape) for m in maps] == [(1, 8, 16, 24), (1, 12, 8, 12), (1, 16, 4, 6), (1, 20, 2, 3)]  # type: ignore[union-attr]
    last = model.get_intermediate_layers(images, [-1])[0]
    assert torch.equal(last, model(images).patch_tokens.flatten(1, 2))  # type: ignore[arg-type]


def test_masks_and_images_below_one_cell_are_refused() -> None:
    model = ConvNeXt(ConvNextConfig((1, 1, 1, 1), (8, 8, 8, 8), patch_size=8))
    with pytest.raises(UsageError, match="no mask token"):
        model(torch.randn(1, 3, 32, 32), torch.zeros(1, 16, dtype=torch.bool))
    with pytest.raises(UsageError, match="24 x 24 are too small"):
        model(torch.randn(1, 3, 24, 24))
    strict = ConvNeXt(ConvNextConfig((1, 1, 1, 1), (8, 8, 8, 8)), fit="strict")
    with pytest.raises(UsageError, match="32 x 32 and 64 x 64"):
        strict(torch.randn(1, 3, 40, 40))

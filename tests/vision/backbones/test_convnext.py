"""ConvNeXt: tokens are the last map and its mean, its grid follows the patch, and layers count from the input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.errors import UsageError
from tenfold.vision.backbones.convnext import CONVNEXT_CONFIGS, ConvNeXt, ConvNextConfig
from tenfold.vision.backbones.vit import VitConfig

SMALL = ConvNextConfig((1, 1, 2, 1), (8, 12, 16, 20), layer_scale=0.5)


def network(config: ConvNextConfig = SMALL) -> ConvNeXt:
    torch.manual_seed(0)
    return config.build().eval()


def block(x: Tensor, state: dict[str, Tensor], at: str, eps: float) -> Tensor:
    """The paper's block: depthwise 7 x 7, LayerNorm over channels, a network of four times the width, a scaled residual."""
    w = {name.removeprefix(at): value for name, value in state.items() if name.startswith(at)}
    y = F.conv2d(x, w["depthwise.weight"], w["depthwise.bias"], padding=3, groups=x.shape[1]).permute(0, 2, 3, 1)
    y = F.layer_norm(y, y.shape[-1:], w["norm.weight"], w["norm.bias"], eps)
    y = F.linear(F.gelu(F.linear(y, w["up.weight"], w["up.bias"])), w["down.weight"], w["down.bias"])
    return x + (y * w["gain"]).permute(0, 3, 1, 2)


@torch.inference_mode()
def test_a_stage_is_the_blocks_of_the_paper_one_after_the_other() -> None:
    model = network()
    x = torch.randn(2, 16, 5, 6)
    expected = x
    for number in range(2):
        expected = block(expected, model.stages[2].state_dict(), f"{number}.", SMALL.norm_eps)
    torch.testing.assert_close(model.stages[2](x), expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_feature_is_the_norm_of_the_mean_of_the_last_map() -> None:
    model, images = network(), torch.randn(2, 3, 64, 96)
    output = model(images)
    assert output.patch_tokens.shape == (2, 2, 3, 20)
    assert output.register_tokens.shape == (2, 0, 20)
    (last,) = model.get_intermediate_layers(images, reshape=True, norm=False)
    assert isinstance(last, Tensor)
    torch.testing.assert_close(output.cls_token, model.norm(last.mean((2, 3))))
    torch.testing.assert_close(output.patch_tokens, model.norm(last.permute(0, 2, 3, 1)))


@torch.inference_mode()
def test_the_last_map_is_resized_to_the_patches_of_a_teacher() -> None:
    teacher = VitConfig(24, 1, 2, patch_size=16, mean=(0.1, 0.2, 0.3), image_size=96, feature="patch-mean")
    student = SMALL.student_of(teacher)
    assert (student.mean, student.image_size, student.feature) == (teacher.mean, 96, "patch-mean")
    assert (student.depths, student.dims) == (SMALL.depths, SMALL.dims)
    images = torch.randn(1, 3, 96, 128)
    same = network(student)(images)
    assert same.patch_tokens.shape == (1, 6, 8, 20)
    torch.testing.assert_close(same.cls_token, network()(images).cls_token)
    for patches in network(student).get_intermediate_layers(images, n=4, reshape=True):
        assert isinstance(patches, Tensor)
        assert patches.shape[2:] == (6, 8)


def test_stages_are_named_from_either_end_and_have_their_widths() -> None:
    images = torch.randn(1, 3, 64, 64)
    last = network().get_intermediate_layers(images, n=2)
    named = network().get_intermediate_layers(images, n=(2, -1))
    assert all(torch.equal(a, b) for a, b in zip(last, named, strict=True))  # type: ignore[arg-type]
    every = network().get_intermediate_layers(images, n=4, return_class_token=True)
    assert [(tuple(p.shape), c.shape[1]) for p, c in every] == [  # type: ignore[union-attr]
        *(((1, 256, 8), 8), ((1, 64, 12), 12)),
        *(((1, 16, 16), 16), ((1, 4, 20), 20)),
    ]
    with pytest.raises(UsageError, match="n = 5: allowed 1 to 4 stages"):
        network().get_intermediate_layers(images, n=5)


def test_images_below_the_stride_and_masks_are_refused() -> None:
    model = network(ConvNextConfig(SMALL.depths, SMALL.dims, patch_size=8))
    with pytest.raises(UsageError, match="images of 24 x 64 are too small for a ConvNeXt: allowed are sides >= 32"):
        model(torch.randn(1, 3, 24, 64))
    with pytest.raises(UsageError, match="no mask token"):
        model(torch.randn(1, 3, 32, 32), torch.zeros(1, 16, dtype=torch.bool))


@pytest.mark.parametrize("wrong", [{"depths": (1, 0, 1, 1)}, {"dims": (0, 1, 1, 1)}, {"layer_scale": 0.0}])
def test_a_wrong_value_names_its_field(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"model.{next(iter(wrong))}"):
        ConvNextConfig(**wrong)


def test_layers_of_a_convnext_count_from_the_input() -> None:
    config = CONVNEXT_CONFIGS["dinov3-convnext-t"]
    for name, layer in [
        ("students.0.backbone.downsample.0.conv.weight", 0),
        ("students.0.backbone.stages.0.0.gain", 1),
        ("students.0.backbone.downsample.1.norm.bias", 3),
        ("students.0.backbone.stages.1.0.gain", 4),
        ("students.0.backbone.stages.3.2.up.bias", 18),
    ]:
        assert config.layer_of(name) == (layer, 19)
    assert config.layer_of("students.0.backbone.norm.weight") is None
    assert config.layer_of("students.0.dino_head.mlp.0.weight") is None

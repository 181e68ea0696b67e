"""The text-aligned model: unit vectors of [CLS ; mean patch], a head without positions, a backbone that must fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tenfold.errors import UsageError
from tenfold.vision.backbones.vit import VisionTransformer, VitConfig
from tenfold.vision.text.aligned import AlignedConfig
from vision.text_inputs import BACKBONE, small_aligned


@torch.inference_mode()
def test_an_image_is_the_unit_vector_of_its_cls_and_mean_patch_after_the_head() -> None:
    model, images = small_aligned(), torch.randn(2, 3, 48, 64)
    output = model.image_tokens(images)
    tokens = torch.cat([output.cls_token[:, None], output.register_tokens, output.patch_tokens.flatten(1, 2)], 1)
    head = model.vision_head(tokens)
    expected = torch.cat([head[:, 0], head[:, 3:].mean(1)], 1)
    torch.testing.assert_close(model.encode_image(images), expected / expected.norm(dim=1, keepdim=True))
    patches = model.encode_patches(images)
    torch.testing.assert_close(patches, F.normalize(head[:, 3:], dim=2).unflatten(1, (3, 4)))


@torch.inference_mode()
def test_the_head_has_no_positions_so_the_order_of_tokens_does_not_matter() -> None:
    head = small_aligned().vision_head
    tokens, order = torch.randn(2, 7, 48), torch.randperm(7)
    scales = [value for name, value in head.named_parameters() if "scale" in name]
    assert len(scales) == 2
    for scale in scales:
        scale.fill_(1.0)  # a block starts as nearly the identity
    torch.testing.assert_close(head(tokens[:, order]), head(tokens)[:, order])


def test_a_model_without_backbone_asks_for_one_and_takes_only_what_fits() -> None:
    model, images = small_aligned(backbone=False), torch.randn(1, 3, 32, 32)
    with pytest.raises(UsageError, match="a vision transformer of width 48: give it"):
        model.encode_image(images)
    with pytest.raises(UsageError, match="a VisionTransformer of width 16 is not the backbone of this head"):
        model.attach(VisionTransformer(VitConfig(16, 1, 2)))
    with pytest.raises(UsageError, match="a Linear is not the backbone"):
        model.attach(torch.nn.Linear(48, 48))
    assert model.attach(VisionTransformer(BACKBONE)).encode_image(images).shape == (1, 96)


@pytest.mark.parametrize(
    "wrong",
    [{"heads": 7}, {"embed": 95}, {"drop_path": 1.0}, {"dim": 32, "heads": 2, "backbone": BACKBONE}, {"blocks": 0}],
)
def test_a_wrong_value_names_its_field(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"align.{next(iter(wrong))}"):
        AlignedConfig(**wrong)

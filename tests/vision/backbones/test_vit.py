"""What the vision transformer draws while it trains, and that it draws nothing otherwise."""

from __future__ import annotations

import math
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from tenfold.nn.rope import AxialRope
from tenfold.vision.backbones.vit import VIT_CONFIGS, VisionTransformer, VitConfig

CONFIG = VitConfig(dim=32, depth=3, heads=2, registers=1, rope_rescale=2.0)


def factors(model: VisionTransformer, *crops: torch.Tensor) -> list[float]:
    """The factor of every rotation that one forward of these crops asks for."""
    seen: list[float] = []
    forward = AxialRope.forward

    def watched(self: AxialRope, height: int, width: int, rescale: float = 1.0) -> object:
        seen.append(rescale)
        return forward(self, height, width, rescale)

    with patch.object(AxialRope, "forward", watched):
        if len(crops) > 1:
            model.forward_crops(list(crops))
        else:
            model(*crops)
    return seen


def test_rescaling_is_log_uniform_between_a_half_and_two() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(replace(CONFIG, depth=1)).train()
    image = torch.randn(1, 3, 16, 16)
    drawn = torch.tensor([factors(model, image)[0] for _ in range(2000)]).log() / math.log(2)
    assert drawn.min() >= -1
    assert drawn.max() <= 1
    sigma = (1 / 3) ** 0.5 / 2000**0.5  # of the mean of a uniform variable on [-1, 1]
    assert abs(drawn.mean()) < 3 * sigma
    for share in (0.25, 0.5, 0.75):
        below = (drawn < 2 * share - 1).float().mean()
        assert abs(below - share) < 3 * (share * (1 - share) / 2000) ** 0.5


def test_every_block_and_every_group_of_crops_has_a_factor_of_its_own() -> None:
    torch.manual_seed(1)
    model = VisionTransformer(CONFIG).train()
    found = factors(model, torch.randn(2, 3, 64, 64), torch.randn(3, 3, 32, 32))
    assert len(found) == 6  # three blocks, two groups
    assert len(set(found)) == 6
    assert len(set(factors(model, torch.randn(2, 3, 64, 64)))) == 3


def test_one_factor_moves_both_axes_and_the_whole_batch() -> None:
    rope = AxialRope(16)
    plain, scaled = rope(4, 6), rope(4, 6, 1.5)
    wide = rope(4, 6, 1.0)
    assert torch.equal(plain.cos, wide.cos)
    assert plain.cos.shape == scaled.cos.shape == (24, 16)  # no axis for the batch
    angles = torch.atan2(scaled.sin, scaled.cos)
    expected = torch.atan2((1.5 * _angles(rope, 4, 6)).sin(), (1.5 * _angles(rope, 4, 6)).cos())
    assert torch.allclose(angles, expected, atol=1e-5)


def _angles(rope: AxialRope, height: int, width: int) -> torch.Tensor:
    """2 pi * coordinate / period, y first, tiled twice (DINOv3's layout)."""
    y, x = ((torch.arange(n) + 0.5) / n * 2 - 1 for n in (height, width))
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).flatten(0, 1)
    return (2 * math.pi * grid[:, :, None] / rope.periods).flatten(1).tile(2)


@pytest.mark.parametrize("rescale", [2.0, None])
def test_nothing_is_drawn_in_evaluation(rescale: float | None) -> None:
    model = VisionTransformer(replace(CONFIG, rope_rescale=rescale)).eval()
    images = torch.randn(2, 3, 64, 64)
    before = torch.random.get_rng_state()
    first = model(images)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.cls_token, model(images).cls_token)
    assert set(factors(model, images)) == {1.0}


def test_the_released_sizes_rescale_as_published_and_dinov2_does_not() -> None:
    for name, config in VIT_CONFIGS.items():
        if name.startswith("dinov3"):
            assert config.rope_rescale == 2.0
        if name.startswith("dinov2"):
            assert config.rope_rescale is None

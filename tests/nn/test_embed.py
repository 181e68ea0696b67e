"""Image embeddings: patches in reading order, and learned positions that fit any grid."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tenfold.nn.embed import ConvStem, PatchEmbed, resize_positions


def test_patch_embedding_equals_a_strided_convolution() -> None:
    embed = PatchEmbed(3, 8, 4)
    x = torch.randn(2, 3, 12, 20)
    expected = F.conv2d(x, embed.weight, embed.bias, stride=4).flatten(2).transpose(1, 2)
    assert torch.allclose(embed(x), expected, atol=1e-5)


def test_the_stem_gives_one_token_per_eight_pixels_in_reading_order() -> None:
    torch.manual_seed(0)
    stem = ConvStem(3, 16)
    x = torch.zeros(1, 3, 16, 40)
    quiet = stem(x)
    assert quiet.shape == (1, 10, 16)
    x[:, :, 8:16, 16:24] = 1.0  # the patch in row 1, column 2
    moved = (stem(x) - quiet).abs().sum(-1)[0]
    assert moved.argmax() == 7


@pytest.mark.parametrize("rule", ["offset", "antialias"])
def test_resized_positions_keep_a_constant_and_the_number_format(rule: str) -> None:
    grid = torch.full((5, 5, 3), 0.75, dtype=torch.bfloat16)
    out = resize_positions(grid, 3, 9, rule)  # type: ignore[arg-type]
    assert out.shape == (3, 9, 3)
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.float(), torch.tensor(0.75))


@pytest.mark.parametrize("rule", ["offset", "antialias"])
def test_positions_of_the_same_grid_are_returned_bit_for_bit(rule: str) -> None:
    grid = torch.randn(4, 6, 3).half()
    assert torch.equal(resize_positions(grid, 4, 6, rule), grid)  # type: ignore[arg-type]


def test_the_antialiased_rule_treats_both_ends_alike_and_the_offset_moves_every_value() -> None:
    torch.manual_seed(0)
    grid = torch.randn(8, 8, 3)
    for rule, alike in (("antialias", True), ("offset", False)):
        turned = resize_positions(grid.flip(0, 1), 12, 5, rule).flip(0, 1)  # type: ignore[arg-type]
        assert torch.allclose(turned, resize_positions(grid, 12, 5, rule), atol=1e-5) == alike  # type: ignore[arg-type]

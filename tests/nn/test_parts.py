"""Rotary positions turn and do not stretch; norms, feed-forward networks and embeddings equal their formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tenfold.errors import UsageError
from tenfold.nn.embed import ConvStem, PatchEmbed, resize_positions
from tenfold.nn.ffn import GeluFFN, SquaredReLUFFN, SwiGLUFFN
from tenfold.nn.norm import RMSNorm, make_norm
from tenfold.nn.rope import AxialRope, RopeScaling, TextRope, scaled_frequencies


def test_text_scores_depend_on_the_distance_alone() -> None:
    rope = TextRope(16)
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(i: int, j: int) -> float:
        return float((rope(torch.tensor([i]))(q) * rope(torch.tensor([j]))(k)).sum())

    assert score(5, 2) == pytest.approx(score(305, 302), abs=1e-3)
    assert score(5, 2) != pytest.approx(score(5, 4), abs=1e-3)


def test_positions_may_differ_by_sample() -> None:
    rope, x = TextRope(8), torch.randn(2, 3, 4, 8)
    positions = torch.tensor([[0, 1, 2, 3], [7, 8, 20, 5]])
    both = rope(positions)(x)
    for i in range(2):
        assert torch.equal(both[i : i + 1], rope(positions[i])(x[i : i + 1]))


def test_axial_rotation_keeps_lengths_and_leaves_the_prefix_alone() -> None:
    rotation = AxialRope(16)(3, 5)
    x = torch.randn(2, 4, 5 + 15, 16)
    y = rotation(x)
    assert torch.equal(y[:, :, :5], x[:, :, :5])
    assert torch.allclose(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-5)


def test_axial_angles_are_those_of_the_paper() -> None:
    height, width, d = 3, 5, 16
    rotation = AxialRope(d)(height, width)
    for i, j, k in [(0, 0, 0), (2, 4, 1), (1, 3, 3)]:
        period = 100 ** (2 * k / (d / 2))
        y = 2 * math.pi * (2 * (i + 0.5) / height - 1) / period
        x = 2 * math.pi * (2 * (j + 0.5) / width - 1) / period
        row = rotation.cos[i * width + j]
        assert row[k].item() == pytest.approx(math.cos(y), abs=1e-5)
        assert row[d // 4 + k].item() == pytest.approx(math.cos(x), abs=1e-5)
        assert torch.equal(row[: d // 2], row[d // 2 :])


def test_rescaling_multiplies_both_axes() -> None:
    rope = AxialRope(8)
    plain, scaled = rope(1, 2), rope(1, 2, rescale=0.5)
    assert torch.allclose(torch.atan2(scaled.sin, scaled.cos)[0, 2:4] * 2, torch.tensor([-math.pi, -math.pi / 10]))
    assert not torch.equal(plain.cos, scaled.cos)


def test_axial_rotation_needs_heads_of_a_multiple_of_four() -> None:
    with pytest.raises(UsageError, match="multiple of 4"):
        AxialRope(6)


def test_length_scaling_divides_slow_frequencies_and_keeps_fast_ones() -> None:
    plain = scaled_frequencies(64, 10000.0, RopeScaling())
    assert torch.allclose(scaled_frequencies(64, 10000.0, RopeScaling("linear", 4.0)), plain / 4)
    stretched = scaled_frequencies(64, 10000.0, RopeScaling("llama3", 8.0, 1.0, 4.0, 512))
    wavelength = 2 * math.pi / plain
    fast, slow = wavelength < 512 / 4, wavelength > 512
    assert fast.any()
    assert slow.any()
    assert torch.allclose(stretched[fast], plain[fast])
    assert torch.allclose(stretched[slow], plain[slow] / 8)
    between = ~fast & ~slow
    assert ((stretched < plain) & (stretched > plain / 8))[between].all()


def test_rms_norm_takes_its_mean_in_fp32_and_ignores_the_sign_of_nothing() -> None:
    norm = RMSNorm(8, eps=0.0)
    x = torch.randn(3, 8) * 1e4
    assert torch.allclose(norm(x).square().mean(-1), torch.ones(3), rtol=1e-5)
    assert torch.allclose(norm(x.half()).float(), norm(x), atol=2e-3)  # the squares overflow fp16
    assert isinstance(make_norm("layer", 8, 1e-6), torch.nn.LayerNorm)


def test_feed_forward_networks_equal_their_formulas() -> None:
    x = torch.randn(4, 6)
    gelu, gated, relu = GeluFFN(6, 10), SwiGLUFFN(6, 10), SquaredReLUFFN(6, 10)
    up = x @ gelu.up.weight.T + gelu.up.bias
    erf = 0.5 * up * (1 + torch.erf(up / math.sqrt(2)))
    assert torch.allclose(gelu(x), erf @ gelu.down.weight.T + gelu.down.bias, atol=1e-6)
    gate, value = (x @ gated.gate_up.weight.T + gated.gate_up.bias).split(10, dim=-1)
    hidden = gate * torch.sigmoid(gate) * value
    assert torch.allclose(gated(x), hidden @ gated.down.weight.T + gated.down.bias, atol=1e-6)
    assert torch.allclose(relu(x), (x @ relu.up.weight.T).clamp_min(0) ** 2 @ relu.down.weight.T, atol=1e-6)


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

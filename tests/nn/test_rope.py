"""Rotary positions turn and do not stretch, and text scores depend on distance only."""

from __future__ import annotations

import math

import pytest
import torch

from tenfold.errors import UsageError
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


def test_the_turns_of_a_rotation_are_the_same_angles_as_complex_numbers() -> None:
    rotation, x = TextRope(8)(torch.arange(50, 60)), torch.randn(1, 2, 10, 8)
    pairs = torch.complex(x[..., :4], x[..., 4:]) * rotation.turns
    assert torch.allclose(rotation(x), torch.cat([pairs.real, pairs.imag], -1), atol=1e-5)


def test_tables_that_grow_keep_the_angles_of_earlier_positions() -> None:
    rope, x = TextRope(8), torch.randn(1, 1, 4, 8)
    before = rope(torch.arange(4))(x)
    rope(torch.tensor([5000]))
    assert torch.equal(rope(torch.arange(4))(x), before)
    assert rope(torch.empty(0, dtype=torch.long))(x[:, :, :0]).shape == (1, 1, 0, 8)


def test_periods_of_a_file_are_used_as_they_are_unless_they_are_to_be_recomputed() -> None:
    exact, rounded, again = AxialRope(16), AxialRope(16), AxialRope(16, recompute=True)
    for rope in (rounded, again):
        rope.load_state_dict({"periods": exact.periods.bfloat16().float()})
    assert not torch.equal(rounded(2, 3).cos, exact(2, 3).cos)
    assert torch.equal(again(2, 3).cos, exact(2, 3).cos)

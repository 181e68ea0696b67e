"""Masks have exact counts, a spread of ratios, and come in blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.errors import UsageError
from tenfold.vision.pretraining.masking import block_masks


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 20),
    grid=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    ratio=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    probability=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_counts_are_the_upper_edges_of_an_even_grid_of_ratios(
    count: int, grid: tuple[int, int], ratio: list[float], probability: float, seed: int
) -> None:
    low, high = ratio
    masks = block_masks(count, grid, (low, high), np.random.default_rng(seed), probability)
    patches, masked = grid[0] * grid[1], int(count * probability)
    assert masks.shape == (count, patches)
    edges = np.linspace(low, high, masked + 1)[1:]
    assert sorted(masks.sum(1).tolist()) == sorted([int(patches * e) for e in edges] + [0] * (count - masked))


def test_half_of_the_crops_are_masked_and_which_ones_is_random() -> None:
    chosen = {tuple(block_masks(16, (14, 14), (0.1, 0.5), np.random.default_rng(s)).any(1)) for s in range(20)}
    assert {sum(row) for row in chosen} == {8}
    assert len(chosen) == 20


def test_masked_patches_lie_together() -> None:
    """Neighbours of a masked patch are masked far more often than in masks of the same count drawn patch by patch."""
    generator = np.random.default_rng(0)
    masks = block_masks(800, (14, 14), (0.3, 0.3), generator, 1.0).reshape(-1, 14, 14)
    together = (masks[:, :, 1:] & masks[:, :, :-1]).mean()
    assert together > 1.8 * 0.3**2
    # The middle more often than the edges, as blocks of any place inside must; no side is preferred.
    often, error = masks.mean(0), (2 * 0.5 * 0.5 / len(masks)) ** 0.5  # of the difference of two shares, at most
    assert abs(often - often[::-1]).max() < 5 * error
    assert abs(often - often[:, ::-1]).max() < 5 * error


def test_equal_generators_give_equal_masks() -> None:
    first, second = (block_masks(8, (7, 9), (0.1, 0.5), np.random.default_rng(4)) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize(("ratio", "probability"), [((0.5, 0.1), 0.5), ((0.1, 1.5), 0.5), ((0.1, 0.5), 1.1)])
def test_shares_outside_their_range_are_refused(ratio: tuple[float, float], probability: float) -> None:
    with pytest.raises(UsageError, match="allowed"):
        block_masks(4, (4, 4), ratio, np.random.default_rng(0), probability)

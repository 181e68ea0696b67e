"""Dense probes: a feature that holds the answer is read out, and ignored pixels do not count."""

from __future__ import annotations

import pytest
import torch

from tenfold.errors import DataError, UsageError
from tenfold.vision.probes.dense import (
    at_points,
    cell_labels,
    confusion,
    depth_probe,
    enlarge,
    mean_iou,
    segmentation_probe,
    silog,
)


def blocks(seed: int, classes: int = 4) -> torch.Tensor:
    """A mask of 16-pixel squares of random classes."""
    coarse = torch.randint(0, classes, (4, 6), generator=torch.Generator().manual_seed(seed))
    return coarse.repeat_interleave(16, 0).repeat_interleave(16, 1)


def test_iou_is_that_of_the_definition_and_ignored_pixels_count_nowhere() -> None:
    truth = torch.tensor([0, 0, 0, 1, 1, 9])
    guess = torch.tensor([0, 0, 1, 1, 7, 0])
    counts = confusion(guess, truth, 2, ignored=9)
    assert counts.tolist() == [[2, 1, 0], [0, 1, 1]]
    assert mean_iou(counts) == pytest.approx(100 * (2 / 3 + 1 / 3) / 2)
    assert confusion(torch.zeros(6, dtype=torch.long), truth, 2, 9).equal(
        confusion(torch.tensor([0, 0, 0, 0, 0, 5]), truth, 2, 9)
    )


def test_a_class_that_is_nowhere_does_not_lower_the_mean() -> None:
    counts = confusion(torch.tensor([0, 1]), torch.tensor([0, 1]), 3, ignored=255)
    assert mean_iou(counts) == 100.0


def test_a_planted_feature_is_read_out_and_ignored_labels_do_not_disturb_it() -> None:
    masks = [blocks(seed) for seed in range(6)]
    cells = [cell_labels(mask, (16, 24), 4, 255) for mask in masks]
    spoilt = [mask.clone() for mask in masks]
    for mask in spoilt:
        mask[:, :48] = 255
    score = segmentation_probe(cells[:4], spoilt[:4], cells[4:], masks[4:], 4, 255, epochs=200)
    assert score.accuracy > 95  # what is lost are the borders between cells
    assert score.miou > 90


def test_points_between_cells_are_those_of_bilinear_enlargement() -> None:
    cells = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(1))
    large = enlarge(cells, 40, 56)
    at = torch.tensor([[0, 0], [3, 17], [39, 55], [20, 30]])
    points = at_points(cells, (at + 0.5) / torch.tensor([40, 56]))
    torch.testing.assert_close(points, large[:, at[:, 0], at[:, 1]].T, atol=1e-5, rtol=1e-5)


def test_scale_costs_only_its_part_of_the_depth_loss() -> None:
    truth = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 0.5
    assert silog(truth, truth) < 1e-5
    assert silog(2 * truth, truth).item() == pytest.approx(0.6931 * 0.15**0.5, rel=1e-3)


def test_depth_is_read_from_a_feature_that_holds_it_and_unknown_depth_is_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    depths = [(blocks(s, 9) + 1).float() for s in range(6)]
    grids = [depth[::4, ::4] for depth in depths]
    cells = [torch.stack([g == k for k in range(1, 10)], dim=2).float() for g in grids]
    noise = [torch.randn(16, 24, 9, generator=generator) for _ in cells]
    for depth in depths[:4]:
        depth[:, :32] = 0.0
    planted = depth_probe(cells[:4], depths[:4], cells[4:], depths[4:], epochs=300, rate=1e-2)
    blind = depth_probe(noise[:4], depths[:4], noise[4:], depths[4:], epochs=300, rate=1e-2)
    assert planted.rmse < 0.5 * blind.rmse
    with pytest.raises(DataError, match="unknown"):
        depth_probe(cells[:1], [torch.zeros(64, 96)], cells[:1], depths[:1])


def test_a_probe_of_no_epochs_is_refused() -> None:
    with pytest.raises(UsageError, match="epochs"):
        segmentation_probe([torch.zeros(2, 2, 3)], [torch.zeros(4, 4, dtype=torch.long)], [], [], 2, 255, epochs=0)

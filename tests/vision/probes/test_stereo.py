"""Matching: planted correspondences are found to the cell, and the floors of the real stereo pair are the known ones."""

from __future__ import annotations

import pytest
import torch

from tenfold.errors import UsageError
from tenfold.vision.probes.correspond import dense_features, discover, match, nearest, raw_patches
from tenfold.vision.probes.stereo import StereoPair, constant_disparity, known_cells, pck, sample_pair, views
from vision.dense_inputs import mini


@pytest.fixture(scope="module")
def pair() -> StereoPair:
    return sample_pair()


def smooth(height: int, width: int, dx: float = 0.0, dy: float = 0.0) -> torch.Tensor:
    """Features that vary smoothly over the plane, sampled at a shift of (dx, dy) cells."""
    y, x = torch.meshgrid(torch.arange(height) + dy, torch.arange(width) + dx, indexing="ij")
    centres = torch.stack(torch.meshgrid(torch.arange(-2, 14, 2.0), torch.arange(-2, 18, 2.0), indexing="ij"))
    far = (y[..., None] - centres[0].flatten()) ** 2 + (x[..., None] - centres[1].flatten()) ** 2
    return torch.exp(-far / 8)


def test_mutual_matches_find_a_shift_to_the_cell() -> None:
    found = match(smooth(12, 16), smooth(12, 16, dx=2.3, dy=-0.2))
    inside = (found.source[:, 0] > 3) & (found.source[:, 0] < 15) & (found.source[:, 1] > 1) & (found.source[:, 1] < 10)
    assert inside.sum() > 50
    moved = (found.target - found.source)[inside]
    assert moved.median(0).values.tolist() == [-2, 0]


def test_features_match_themselves_without_an_offset() -> None:
    for cells in (smooth(12, 16), torch.randn(7, 9, 8, generator=torch.Generator().manual_seed(1))):
        found = match(cells, cells)
        assert len(found) == cells.shape[0] * cells.shape[1]
        assert found.target.equal(found.source)


def test_mutual_pairs_choose_each_other_and_come_in_order() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 6, 8, generator=generator), torch.randn(4, 7, 8, generator=generator)
    found = match(a, b)
    there, back = nearest(a, b)[0], nearest(b, a)[0]
    for source, target in zip(found.source.long(), found.target.long()):
        i, j = int(source[1] * 6 + source[0]), int(target[1] * 7 + target[0])
        assert (there[i], back[j]) == (j, i)
    assert found.similarity.equal(found.similarity.sort(descending=True).values)
    assert len(match(a, b, most=2)) == 2
    assert len(match(a, b, mutual=False)) == 30


def test_a_perfect_feature_scores_a_hundred_and_the_views_share_its_scale(pair: StereoPair) -> None:
    known, truth = known_cells(pair, 8)
    assert known.float().mean() == pytest.approx(0.927, abs=0.01)
    for view in views(pair.right).values():
        linear, offset = view.back[:, :2], view.back[:, 2]
        there = (truth.nan_to_num(0).flatten(0, 1) - offset) @ torch.linalg.inv(linear).T
        cells = ((there - 4) / 8).round().long()
        rows, columns = view.image.shape[0] // 8, view.image.shape[1] // 8
        index = cells[:, 1].clamp(0, rows - 1) * columns + cells[:, 0].clamp(0, columns - 1)
        assert pck(index, columns, pair, view, 8)[8] > 85  # some cells lie outside the right image, above all turned


def test_moving_all_cells_alike_scores_what_is_known(pair: StereoPair) -> None:
    assert constant_disparity(pair, 8)[8] == pytest.approx(20.3, abs=1)


def test_raw_patches_score_what_is_known(pair: StereoPair) -> None:
    changed = views(pair.right)
    cells = raw_patches(pair.left, 32)
    for name, wanted in {"plain": {8: 64.7, 16: 70.1}, "colour change": {8: 27.4}}.items():
        seen = raw_patches(changed[name].image, 32)
        score = pck(nearest(cells, seen)[0], seen.shape[1], pair, changed[name], 8)
        for pixels, value in wanted.items():
            assert score[pixels] == pytest.approx(value, abs=1.5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "known"), [("scale 1.5", 28.6), ("rotation 20", 13.8)])
def test_raw_patches_on_a_moved_image_score_what_is_known(pair: StereoPair, name: str, known: float) -> None:
    view = views(pair.right)[name]
    seen = raw_patches(view.image, 32)
    score = pck(nearest(raw_patches(pair.left, 32), seen)[0], seen.shape[1], pair, view, 8)
    assert score[8] == pytest.approx(known, abs=2)


def test_dense_features_have_one_cell_per_stride_and_windows_cover_the_image() -> None:
    model = mini()
    image = torch.randint(0, 256, (70, 101, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert dense_features(model, image).shape == (8, 12, 192)
    assert dense_features(model, image, stride=4).shape == (17, 25, 192)
    whole = dense_features(model, image)
    torch.testing.assert_close(dense_features(model, image, crop=1000), whole, atol=1e-5, rtol=1e-4)
    windowed = dense_features(model, image, crop=40)
    assert windowed.isfinite().all()
    assert torch.cosine_similarity(windowed, whole, dim=2).mean() > 0.8
    with pytest.raises(UsageError, match="one patch"):
        dense_features(model, image, crop=4)


def test_the_object_is_the_smaller_group_that_is_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    ground, thing = torch.randn(16, generator=generator), torch.randn(16, generator=generator)
    inside = torch.zeros(12, 14, dtype=torch.bool)
    inside[3:7, 4:9] = True
    cells = torch.where(inside[..., None], thing, ground) + 0.1 * torch.randn(12, 14, 16, generator=generator)
    assert discover(cells).equal(inside)

"""The tour's vision question: tiles of unseen parts in changed colours, and its baseline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from needed import package
from tenfold.data.readers import read_image
from tenfold.tour.tiles import CHANGES, HELD, TRAIN, change, cut, most_frequent, save, write_tiles
from tenfold.tour.vision import question_picture
from tenfold.vision.pretraining.photographs import TILE

package("PIL")


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    """Two pictures whose right quarter has other values than the rest: 40 and 200, up to 255."""
    files = []
    for name, width in (("a", 900), ("b", 4 * TILE)):
        image = np.random.default_rng(0).integers(0, 40, (300, width, 3), np.uint8)
        image[:, int(width * 0.75) :] += 200
        save(image, tmp_path / f"{name}.png")
        files.append(tmp_path / f"{name}.png")
    return files


def test_no_training_tile_shows_a_pixel_of_what_is_asked(photographs: list[Path], tmp_path: Path) -> None:
    train, val = write_tiles(photographs, tmp_path / "tiles")
    for file in photographs:
        seen = [read_image(tile) for tile in (train / file.stem).iterdir()]
        asked = [read_image(tile) for tile in (val / file.stem).iterdir()]
        assert 1 <= len(seen) <= TRAIN
        assert 1 <= len(asked) <= HELD * len(CHANGES)
        assert len(asked) % len(CHANGES) == 0
        assert max(tile.max() for tile in seen) < 40
        assert min(tile.mean() for tile in asked) > 100
        assert {tile.shape for tile in (*seen, *asked)} == {(TILE, TILE, 3)}


def test_an_earlier_tours_tiles_are_replaced(photographs: list[Path], tmp_path: Path) -> None:
    write_tiles(photographs, tmp_path / "tiles")
    train, _ = write_tiles(photographs[:1], tmp_path / "tiles")
    assert [folder.name for folder in train.iterdir()] == ["a"]


def test_a_change_mirrors_swaps_channels_and_changes_the_light() -> None:
    tile = np.zeros((2, 2, 3), np.uint8)
    tile[0, 0] = (30, 60, 90)
    same = change(tile, (0, 1, 2), 1.0, 1.0)
    assert same[0, 1].tolist() == [30, 60, 90]
    assert change(tile, (2, 0, 1), 1.0, 1.0)[0, 1].tolist() == [90, 30, 60]
    assert change(tile, (0, 1, 2), 1.0, 1.5).mean() > same.mean()
    assert change(tile, (0, 1, 2), 0.5, 1.0).std() < same.std()
    assert len({order for order, *_ in CHANGES}) == len(CHANGES)
    assert all(sorted(order) == [0, 1, 2] and list(order) != [0, 1, 2] for order, *_ in CHANGES)


def test_tiles_of_a_large_image_are_spread_over_it() -> None:
    image = np.arange(1000, dtype=np.int64)[:, None] * np.ones((1, 1000), np.int64)
    tops = [int(tile[0, 0]) for tile in cut(image, TILE, 4)]
    assert len(tops) == 4
    assert tops[0] == 0
    assert tops[-1] == 864


def test_the_baseline_is_the_share_of_the_largest_photograph(tmp_path: Path) -> None:
    for name, count in (("a", 3), ("b", 1)):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{i}.png").write_bytes(b"")
    assert most_frequent(tmp_path) == 75.0


def test_the_picture_has_a_column_for_each_photograph(photographs: list[Path], tmp_path: Path) -> None:
    train, val = write_tiles(photographs, tmp_path / "tiles")
    assert question_picture(train, val).shape == (4 * TILE, 2 * TILE, 3)

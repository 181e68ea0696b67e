"""The contact sheet shows what curation did: green stays, white goes, red went with its component near a reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tenfold.vision.curation.contact_sheet import CAPTION, GREEN, MARGIN, RED, SIDE, WHITE, write_sheet
from tenfold.vision.curation.duplicates import write_columns
from vision.curation_inputs import angles, encoded, shard_of, write_pool

ROW, COLUMN = SIDE + CAPTION + MARGIN, SIDE + MARGIN


@pytest.fixture
def curated(tmp_path: Path) -> Path:
    """Six grey images: 0 and 1 are duplicates, 2 and 3 too and near a reference, 4 cannot be read, 5 stands alone."""
    images = [encoded(np.full((32, 32, 3), 40 * n, np.uint8)) for n in range(6)]
    images[4] = b"torn"
    write_pool(tmp_path / "pool.parquet", images)
    for part in ("copies/pool", "dedup/groups", "relative-dedup/groups"):
        (tmp_path / part).mkdir(parents=True)
    shard_of(tmp_path / "copies/pool/rows-0.parquet", angles(*range(6)))
    component = np.array([0, 0, 2, 2, 4, 5])
    kept = np.array([True, False, True, False, True, True])
    write_columns(tmp_path / "dedup/groups/groups.parquet", component=component, kept=kept)
    touched = np.array([False, False, False, True, False, False])
    write_columns(tmp_path / "relative-dedup/groups/groups.parquet", component=component, touched=touched)
    write_columns(tmp_path / "manifest.parquet", id=np.array([0, 4, 5]), level_1=np.array([0, 1, 1]))
    return tmp_path


def drawn(out: Path) -> np.ndarray:
    write_sheet(out / "pool.parquet", out, out / "contact.png")
    return np.array(Image.open(out / "contact.png"))


def frame(sheet: np.ndarray, row: int, place: int) -> tuple[int, ...]:
    """The colour just outside of a thumbnail's corner."""
    return tuple(sheet[MARGIN + row * ROW + CAPTION - 1, MARGIN + place * COLUMN - 1].tolist())


def grey(sheet: np.ndarray, row: int, place: int) -> int:
    top, left = MARGIN + row * ROW + CAPTION, MARGIN + place * COLUMN
    values = np.unique(sheet[top : top + SIDE, left : left + SIDE])
    assert len(values) == 1
    return int(values[0])


def test_frames_say_what_became_of_each_image(curated: Path) -> None:
    sheet = drawn(curated)
    assert len(sheet) == 5 * ROW + MARGIN  # two groups, one row of leaks, two clusters
    assert [frame(sheet, 0, place) for place in range(2)] == [GREEN, WHITE]
    assert [frame(sheet, 1, place) for place in range(2)] == [RED, RED]
    assert [frame(sheet, 2, place) for place in range(2)] == [RED, RED]
    assert [[grey(sheet, row, place) for place in range(2)] for row in range(3)] == [[0, 40], [80, 120], [80, 120]]


def test_the_fullest_cluster_comes_first_and_an_unreadable_image_is_grey(curated: Path) -> None:
    sheet = drawn(curated)
    assert [grey(sheet, 3, place) for place in range(2)] == [127, 200]
    assert grey(sheet, 4, 0) == 0


def test_without_references_no_frame_is_red(curated: Path) -> None:
    (curated / "relative-dedup/groups/groups.parquet").unlink()
    sheet = drawn(curated)
    assert len(sheet) == 4 * ROW + MARGIN
    assert not (sheet == RED).all(-1).any()

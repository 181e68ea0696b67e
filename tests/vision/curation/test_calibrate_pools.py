"""Calibration on pools that hold copies already, and on an encoder that cannot tell any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tenfold.errors import UsageError
from tenfold.vision.curation.calibrate import CannotTell, calibrate, choose_planted
from tenfold.vision.curation.duplicates import write_edges
from tenfold.vision.curation.embeddings import Encoder

IMAGES = 60
PLANTED = {"re-encoded": np.full(60, 0.99), "resized": np.full(60, 0.98), "cropped": np.full(60, 0.8)}


def shard_of(path: Path, vectors: np.ndarray) -> Path:
    """A shard as the embed stage writes it."""
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).ravel()), vectors.shape[1])
    digests = [f"{row:016x}" for row in range(len(vectors))]
    pq.write_table(pa.table({"id": np.arange(len(vectors)), "sha256": digests, "vector": values}), path)
    return path


def calibrated(folder: Path, pairs: list[tuple[int, int, float]]) -> tuple[float, float]:
    shard = shard_of(folder / "rows.parquet", np.ones((IMAGES, 2)))
    query, neighbor = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    write_edges(folder / "edges.parquet", (query, neighbor, np.array([pair[2] for pair in pairs], np.float32)))
    found = calibrate(Encoder(), PLANTED, [folder / "edges.parquet"], [shard], 0.69)
    assert found.table
    return found.threshold, found.reference_threshold


def test_a_picture_in_many_sizes_is_no_mistake(tmp_path: Path) -> None:
    sizes = [(i, j, 0.995) for i in range(20) for j in range(i + 1, 20)]
    assert calibrated(tmp_path, sizes) == (0.79, 0.69)


def test_frames_of_a_video_are_few_enough(tmp_path: Path) -> None:
    assert calibrated(tmp_path, [(i, i + 1, 0.9) for i in range(5)])[0] == 0.79


def test_other_images_that_are_joined_refuse_the_encoder_with_its_table(tmp_path: Path) -> None:
    with pytest.raises(CannotTell, match="joins 21 images of 60") as caught:
        calibrated(tmp_path, [(i, i + 1, 0.9) for i in range(20)])
    assert caught.value.calibration.table


def test_an_encoder_to_which_everything_is_alike_has_no_copies(tmp_path: Path) -> None:
    with pytest.raises(CannotTell, match="joins 60 images of 60"):
        calibrated(tmp_path, [(i, i + 1, 0.999) for i in range(IMAGES - 1)])


def test_blank_images_are_not_planted(tmp_path: Path) -> None:
    vectors = np.array([[1, 0], [0, 0], [0, 1], [0, 0]], np.float32)
    shard = shard_of(tmp_path / "rows.parquet", vectors)
    assert choose_planted([shard], 0).tolist() == [0, 2]
    with pytest.raises(UsageError, match="sees nothing in any image"):
        choose_planted([shard_of(tmp_path / "blank.parquet", np.zeros((3, 2), np.float32))], 0)

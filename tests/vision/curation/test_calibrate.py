"""Calibration of near-duplicate thresholds on planted copies: what is found, what is refused, and what is used again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.errors import DataError, UsageError
from tenfold.vision.backbones.vit import VisionTransformer, VitConfig
from tenfold.vision.curation.calibrate import (
    KINDS,
    Calibration,
    calibrate,
    copies_of,
    load_calibration,
    show_table,
    wanted_floor,
)
from tenfold.vision.curation.config import CurateConfig
from tenfold.vision.curation.curate import curate
from tenfold.vision.curation.duplicates import Pair, exact_edges
from tenfold.vision.curation.embeddings import Encoder, read_column
from vision.curation_inputs import angles, encoded, save_vit, shard_of, write_pool


def test_calibrated_dedup_finds_the_planted_copies_and_joins_nothing_else(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    report = curate(CurateConfig("pixels", pool, 1000, out, calibrate=True, workers=2), print)
    printed = capsys.readouterr().out
    assert "duplicates" in printed
    assert "false pairs" in printed
    recorded = json.loads((out / "calibration.json").read_text())
    chosen = next(row for row in recorded["table"] if row["threshold"] == recorded["threshold"])
    assert chosen["recall"] >= 0.99
    assert recorded["reference_threshold"] <= recorded["threshold"]
    labels = read_column(out / "dedup/groups/groups.parquet", "component")
    assert (labels[200:] == np.arange(100)).mean() >= 0.99
    assert np.bincount(labels).max() <= 2
    assert np.array_equal(labels[:200], np.arange(200))
    assert report["dedup"]["left"] in (200, 201)
    again = curate(CurateConfig("pixels", pool, 1000, out))  # what was recorded is used without the flag
    assert again["dedup"] == report["dedup"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_planted_copies_in_all_of_imagenette_are_found_and_no_component_is_large(
    test_data: Path, tmp_path: Path
) -> None:
    pool = test_data / "vision/imagenette160_train.parquet"
    report = curate(CurateConfig("pixels", pool, 2000, tmp_path, calibrate=True, workers=2, retrieve="none"), print)
    recorded = json.loads((tmp_path / "calibration.json").read_text())
    chosen = next(row for row in recorded["table"] if row["threshold"] == recorded["threshold"])
    assert recorded["images"] == 9469
    assert chosen["recall"] >= 0.99
    assert chosen["largest component"] <= 9
    assert report["dedup"]["largest component"] <= 9
    assert report["manifest"]["rows"] == 2000


def test_a_descriptor_that_cannot_tell_copies_stops_with_its_numbers(
    photographs: list[np.ndarray], tmp_path: Path
) -> None:
    pool = write_pool(tmp_path / "pool.parquet", [encoded(image) for image in photographs[:60]])
    torch.manual_seed(0)
    config = VitConfig(dim=32, depth=1, heads=2, patch_size=16)
    weights = save_vit(tmp_path / "w.safetensors", VisionTransformer(config))
    with pytest.raises(UsageError, match=r"cannot tell copies .* joins \d+ images of 60"):
        curate(CurateConfig("pixels", pool, 10, tmp_path / "out", copies=str(weights), size=32, calibrate=True))
    assert not (tmp_path / "out/calibration.json").exists()


def test_a_calibration_of_another_encoder_is_refused(pool: Path, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    made_by = {"by": "sscd.pth", "size": 224, "sha256": "0"}
    numbers = {"threshold": 0.6, "reference_threshold": 0.45, "floor": 0.4, "images": 10}
    path.write_text(json.dumps({"describe": made_by, **numbers, "table": []}))  # the last version's word for encoder
    with pytest.raises(UsageError, match=r"made with sscd\.pth, not pixels"):
        curate(CurateConfig("pixels", pool, 5, tmp_path))
    path.write_text("{}")
    with pytest.raises(DataError, match=r"calibration\.json is not a calibration"):
        curate(CurateConfig("pixels", pool, 5, tmp_path))


def edges_of(folder: Path, vectors: np.ndarray) -> tuple[Path, Path]:
    """A pool of these vectors, and all of its edges."""
    shard = shard_of(folder / "pool.parquet", vectors)
    exact_edges(Pair(shard, shard, 0, 0, 64, -1.0, ""), folder / "edges.parquet")
    return shard, folder / "edges.parquet"


def test_the_thresholds_are_the_largest_that_finds_copies_and_the_smallest_that_joins_few(tmp_path: Path) -> None:
    shard, edges = edges_of(tmp_path, angles(0, 60, 120, 180, 240, 300))  # neighbours at 0.5, nothing above
    scores = {kind: np.full(100, value, np.float32) for kind, value in zip(KINDS, (0.95, 0.855, 0.9))}
    floor = wanted_floor(scores)
    assert floor == pytest.approx(0.75)  # a tenth below what finds all copies
    found = calibrate(Encoder(), scores, [edges], [shard], floor)
    assert found.threshold == pytest.approx(0.85)
    assert found.reference_threshold == floor
    assert [row["false pairs"] for row in found.table] == [0] * len(found.table)
    assert found.table[0]["recall"] == 1.0
    above = next(row for row in found.table if row["threshold"] == 0.86)
    assert (above["resized"], above["cropped"]) == (0.0, 1.0)
    table = show_table(found).splitlines()
    assert sum("duplicates" in line for line in table) == sum("references" in line for line in table) == 1


def test_a_threshold_that_joins_the_pool_is_refused_with_its_component(tmp_path: Path) -> None:
    shard, edges = edges_of(tmp_path, angles(*range(0, 120, 20)))  # neighbours at 0.94
    scores = {kind: np.full(50, 0.9, np.float32) for kind in KINDS}
    with pytest.raises(UsageError, match=r"pixels cannot tell copies .* joins 6 images of 6 .* allowed are 2"):
        calibrate(Encoder(), scores, [edges], [shard], wanted_floor(scores))


def test_a_saved_calibration_is_read_back(tmp_path: Path) -> None:
    saved = Calibration(Encoder(), 0.85, 0.8, 0.7, 10, [{"threshold": 0.7, "recall": 1.0}])
    saved.save(tmp_path / "calibration.json")
    assert load_calibration(tmp_path / "calibration.json", Encoder()) == saved


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_copies_have_the_size_that_their_kind_says(height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    again, small, cut = copies_of(image, np.random.default_rng(seed))
    assert again.shape == image.shape
    assert small.shape == (max(1, round(height / 2)), max(1, round(width / 2)), 3)
    h, w = cut.shape[:2]
    assert (h, w) == (max(1, round(height * 0.95)), max(1, round(width * 0.95)))
    windows = np.lib.stride_tricks.sliding_window_view(image, (h, w, 3)).reshape(-1, h, w, 3)
    assert any(np.array_equal(cut, window) for window in windows)

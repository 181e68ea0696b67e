"""Curation on real photographs: copies and leaks go, the rest stays in balance, and no kill or worker changes a byte."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from needed import package
from tenfold.errors import DataError
from tenfold.shards.journal import NAME as JOURNAL
from tenfold.vision.backbones.vit import VisionTransformer, VitConfig
from tenfold.vision.curation.config import CurateConfig
from tenfold.vision.curation.curate import curate, default_levels
from tenfold.vision.curation.embeddings import Vectors, cosines, read_column
from vision.curation_inputs import encoded, save_vit, write_pool


def outputs(out: Path) -> dict[str, bytes]:
    """Every result and intermediate. Journals name absolute paths in their fingerprints, locks a process."""
    skipped = (JOURNAL, ".lock")
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name not in skipped}


def test_equal_pixels_are_duplicates_even_where_a_descriptor_sees_nothing(tmp_path: Path) -> None:
    grey = [encoded(np.full((40, 40, 3), level, np.uint8)) for level in (50, 50, 90)]
    assert np.abs(cosines(np.full((40, 40, 3), 50, np.uint8))).max() < 1e-3
    report = curate(
        CurateConfig("pixels", write_pool(tmp_path / "p.parquet", grey), 10, tmp_path / "out", threshold=0.99)
    )
    assert report["dedup"]["dropped"] >= 1


def run(pool: Path, reference: Path, out: Path, workers: int = 1, executor: str = "local") -> list[str]:
    options = ["--pool", pool, "--reference", reference, "--target", 90, "--out", out, "--threshold", 0.8, "--json"]
    options += ["--levels", 12, 3, "--shard-rows", 128, "--workers", workers, "--executor", executor]
    return [sys.executable, "-m", "tenfold", "vision", "curate", "pixels", *map(str, options)]


def finish(words: list[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=280)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return result


@pytest.fixture(scope="module")
def curated(pool: Path, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """What one worker makes, and how long it takes."""
    out = tmp_path_factory.mktemp("curated") / "out"
    start = time.monotonic()
    report = json.loads(finish(run(pool, reference, out)).stdout)
    took = time.monotonic() - start
    assert report["relative-dedup"]["touching"] == 15
    assert report["relative-dedup"]["dropped"] == 10
    assert report["manifest"]["rows"] == 90
    assert report["manifest"]["retrieved"] == 45
    manifest = pq.read_table(out / "manifest.parquet")
    ids = manifest["id"].to_pylist()
    assert len(set(ids)) == 90
    assert not set(ids) & {*range(95, 105), *range(295, 300)}
    assert set(manifest.column_names) == {"id", "name", "sha256", "level_1", "level_2", "why", "times"}
    assert Image.open(out / "contact.png").size[0] > 400
    return outputs(out), took


def test_two_workers_and_a_second_run_leave_the_bytes_of_one(
    curated: tuple[dict[str, bytes], float], pool: Path, reference: Path, tmp_path: Path
) -> None:
    finish(run(pool, reference, tmp_path / "out", workers=2))
    assert outputs(tmp_path / "out") == curated[0]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("rows-*.parquet")}
    finish(run(pool, reference, tmp_path / "out"))
    assert outputs(tmp_path / "out") == curated[0]
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("executor", "workers"), [("local", 4), ("ray", 2)])
def test_four_workers_and_ray_leave_the_bytes_of_one(
    curated: tuple[dict[str, bytes], float], pool: Path, reference: Path, tmp_path: Path, executor: str, workers: int
) -> None:
    if executor == "ray":
        package("ray")
    finish(run(pool, reference, tmp_path / "out", workers, executor))
    assert outputs(tmp_path / "out") == curated[0]


SLOW = [pytest.mark.slow, pytest.mark.timeout(5400)]


@pytest.mark.parametrize(
    ("kills", "executor"),
    [(1, "local"), pytest.param(20, "local", marks=SLOW), pytest.param(20, "ray", marks=SLOW)],
)
def test_a_curation_killed_anywhere_ends_in_the_same_bytes(
    curated: tuple[dict[str, bytes], float], pool: Path, reference: Path, tmp_path: Path, kills: int, executor: str
) -> None:
    """On Ray the driver is killed; its cluster then ends by itself."""
    expected, took = curated
    if executor == "ray":
        package("ray")
        start = time.monotonic()  # Ray's own start is part of the time in which kills fall
        finish(run(pool, reference, tmp_path / "timed", workers=2, executor=executor))
        took = time.monotonic() - start
    draw = random.Random(kills)
    out, left = tmp_path / "0", kills
    while left:
        command, silent = run(pool, reference, out, workers=2, executor=executor), subprocess.DEVNULL
        process = subprocess.Popen(command, stdout=silent, stderr=silent, start_new_session=True)
        try:
            process.wait(draw.uniform(0.2, 0.9) * took)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            left -= 1
        if process.returncode == 0:  # all done: kill another one from the start
            assert outputs(out) == expected
            out = tmp_path / str(left)
    finish(run(pool, reference, out, workers=2, executor=executor))
    assert outputs(out) == expected


def test_features_come_from_weights_and_whole_clusters_are_retrieved(
    pool: Path, reference: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    weights = save_vit(tmp_path / "w.safetensors", VisionTransformer(VitConfig(dim=32, depth=1, heads=2)))
    words = {"reference": (reference,), "threshold": 0.8, "levels": (6,), "retrieve": "clusters", "iterations": 5}
    config = CurateConfig(str(weights), pool, 60, tmp_path / "out", size=32, **words)
    report = curate(config)
    assert Vectors([tmp_path / "out/features/pool/rows-0000000000.parquet"]).width == 64
    assert report["retrieve"]["images"] > 0
    manifest = pq.read_table(tmp_path / "out/manifest.parquet")
    tree = pq.read_table(tmp_path / "out/cluster/tree/tree/tree.parquet")
    kept = pc.is_in(tree["row"], manifest["id"])  # pyright: ignore[reportAttributeAccessIssue]
    asked = set(tree.filter(kept)["level_1"].to_pylist())
    assert manifest.num_rows == 60
    assert len(asked) > 1


def test_ivf_leaves_the_survivors_of_exact_search(pool: Path, tmp_path: Path) -> None:
    kept = []
    for neighbors in ("exact", "ivf"):
        config = CurateConfig(
            "pixels", pool, 10, tmp_path / neighbors, threshold=0.8, neighbors=neighbors, retrieve="none"
        )
        curate(config)
        kept.append(read_column(tmp_path / neighbors / "dedup/groups/groups.parquet", "kept"))
    assert np.array_equal(kept[0], kept[1])


def test_without_threshold_or_calibration_the_command_stops_and_says_why(pool: Path, tmp_path: Path) -> None:
    words = ["pixels", "--pool", str(pool), "--target", "5", "--out", str(tmp_path / "out")]
    result = finish([sys.executable, "-m", "tenfold", "vision", "curate", *words], code=2)
    assert "--calibrate" in result.stderr
    assert "--threshold" in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_empty_pool_is_refused_before_any_work(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        curate(CurateConfig("pixels", tmp_path / "empty", 5, tmp_path / "out", threshold=0.8))
    write_pool(tmp_path / "none.parquet", [])
    with pytest.raises(DataError, match="has no rows"):
        curate(CurateConfig("pixels", tmp_path / "none.parquet", 5, tmp_path / "out", threshold=0.8))
    assert not (tmp_path / "out").exists()


def test_a_pool_of_nothing_but_test_images_says_that_nothing_is_left(
    photographs: list[np.ndarray], reference: Path, tmp_path: Path
) -> None:
    pool = write_pool(tmp_path / "pool.parquet", [encoded(image) for image in photographs[300:304]])
    with pytest.raises(DataError, match="nothing is left"):
        curate(CurateConfig("pixels", pool, 5, tmp_path / "out", reference=(reference,), threshold=0.8))
    assert not (tmp_path / "out/manifest.parquet").exists()


def test_unreadable_images_are_left_out_and_too_many_stop_the_run(
    photographs: list[np.ndarray], tmp_path: Path
) -> None:
    images = [encoded(image) for image in photographs[:20]]
    images[7] = images[7][:200]
    pool = write_pool(tmp_path / "pool.parquet", images)
    with pytest.raises(DataError, match=r"1 of 20 images cannot be read.*row 7"):
        curate(CurateConfig("pixels", pool, 50, tmp_path / "strict", threshold=0.8))
    assert not (tmp_path / "strict/manifest.parquet").exists()
    report = curate(CurateConfig("pixels", pool, 50, tmp_path / "out", threshold=0.8, error_rate=0.1))
    assert report["embed"] == {"images": 20, "unreadable": 1}
    assert pq.read_table(tmp_path / "out/manifest.parquet")["id"].to_pylist() == [*range(7), *range(8, 20)]


def test_weights_that_give_nan_leave_no_shard(photographs: list[np.ndarray], tmp_path: Path) -> None:
    model = VisionTransformer(VitConfig(dim=32, depth=1, heads=2))
    torch.nn.init.constant_(model.norm.weight, float("nan"))
    weights = save_vit(tmp_path / "w.safetensors", model)
    pool = write_pool(tmp_path / "pool.parquet", [encoded(image) for image in photographs[:3]])
    with pytest.raises(DataError, match=r"w\.safetensors: field vector is not finite"):
        curate(CurateConfig(str(weights), pool, 5, tmp_path / "out", size=32, threshold=0.8))
    assert not list((tmp_path / "out/features").rglob("*.parquet"))


def test_default_levels_fall_ten_to_one_and_end_at_ten() -> None:
    assert default_levels(3) == (1,)
    assert default_levels(9469) == (473, 47)
    assert default_levels(200_000_000) == (10_000_000, 1_000_000, 100_000, 10_000, 1_000)

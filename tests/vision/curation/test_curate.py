"""Curation on real photographs: copies and leaks go, the rest stays in balance, and no kill or worker changes a byte."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from conftest import package
from tenfold.data.sources import open_source
from tenfold.errors import DataError, UsageError
from tenfold.shards.journal import NAME as JOURNAL
from tenfold.vision.backbones.vit import VisionTransformer, VitConfig
from tenfold.vision.curation.calibrate import copies_of
from tenfold.vision.curation.config import CurateConfig
from tenfold.vision.curation.curate import curate, default_levels
from tenfold.vision.curation.duplicates import Group, Pair, drop_touched, exact_edges, group_pool, touch_references
from tenfold.vision.curation.embeddings import Vectors, cosines, read_column, read_vectors


def encoded(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_pool(path: Path, images: list[bytes]) -> Path:
    pq.write_table(pa.table({"image": pa.array(images, pa.binary())}), path)
    return path


def shard_of(path: Path, vectors: np.ndarray, first: int = 0) -> Path:
    """A shard as the embed stage writes it."""
    rows = len(vectors)
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).ravel()), vectors.shape[1])
    digests = [f"{first + row:064x}"[::-1] for row in range(rows)]
    ids, pixels = np.arange(first, first + rows), np.ones(rows, np.int64)
    columns = {"id": ids, "name": digests, "sha256": digests, "pixels": pixels, "vector": values}
    pq.write_table(pa.table(columns), path)
    return path


def angles(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def outputs(out: Path) -> dict[str, bytes]:
    """Every result and intermediate. Journals name absolute paths in their fingerprints, locks a process."""
    skipped = (JOURNAL, ".lock")
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name not in skipped}


@pytest.fixture(scope="module")
def photographs(test_data: Path) -> list[np.ndarray]:
    source = open_source(test_data / "vision/imagenette160_val.parquet")
    return [source[index].image for index in range(0, 1991, 6)]


@pytest.fixture(scope="module")
def pool(photographs: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 photographs, then copies of the first 100: re-encoded, resized, cropped in turn."""
    rng = np.random.default_rng(5)
    copies = [copies_of(image, rng)[number % 3] for number, image in enumerate(photographs[:100])]
    images = [encoded(image) for image in [*photographs[:200], *copies]]
    return write_pool(tmp_path_factory.mktemp("pool") / "pool.parquet", images)


@pytest.fixture(scope="module")
def reference(photographs: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A test set: ten photographs that are in the pool, five of them twice there, and twenty that are not."""
    chosen = photographs[95:105] + photographs[300:320]
    return write_pool(tmp_path_factory.mktemp("test") / "test.parquet", [encoded(image) for image in chosen])


def test_a_chain_of_duplicates_leaves_one_though_its_ends_are_apart(tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "pool.parquet", angles(0, 40, 80, 200))  # cos 40 = 0.77, cos 80 = 0.17
    exact_edges(Pair(shard, shard, 0, 0, 64, 0.6, ""), tmp_path / "edges.parquet")
    group_pool(Group((tmp_path / "edges.parquet",), (shard,), 0.6, ""), tmp_path / "groups.parquet")
    assert read_column(tmp_path / "groups.parquet", "component").tolist() == [0, 0, 0, 3]
    assert read_column(tmp_path / "groups.parquet", "kept").tolist() == [True, False, False, True]


def test_a_chain_that_touches_a_reference_leaves_nothing(tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "pool.parquet", angles(0, 40, 80, 200))
    other = shard_of(tmp_path / "reference.parquet", angles(110), first=50)  # near the chain's last image alone
    edges, touching, groups = (tmp_path / f"{name}.parquet" for name in ("edges", "touching", "groups"))
    exact_edges(Pair(shard, shard, 0, 0, 64, 0.6, ""), edges)
    touch_references(Pair(shard, other, 0, 0, 1, 0.6, ""), touching)
    drop_touched(Group((edges,), (shard,), 0.6, "", (touching,)), groups)
    assert read_column(groups, "touched").tolist() == [False, False, True, False]
    assert read_column(groups, "kept").tolist() == [False, False, False, True]


def test_the_image_with_most_pixels_is_the_one_that_stays(photographs: list[np.ndarray], tmp_path: Path) -> None:
    image = photographs[0]
    small = np.array(Image.fromarray(image).resize((image.shape[1] // 2, image.shape[0] // 2)))
    pool = write_pool(tmp_path / "pool.parquet", [encoded(i) for i in (small, image, photographs[1])])
    curate(CurateConfig("pixels", pool, 10, tmp_path / "out", threshold=0.8))
    assert pq.read_table(tmp_path / "out/manifest.parquet")["id"].to_pylist() == [1, 2]


def test_equal_pixels_are_duplicates_even_where_a_descriptor_sees_nothing(tmp_path: Path) -> None:
    grey = [encoded(np.full((40, 40, 3), level, np.uint8)) for level in (50, 50, 90)]
    assert np.abs(cosines(np.full((40, 40, 3), 50, np.uint8))).max() < 1e-3
    report = curate(
        CurateConfig("pixels", write_pool(tmp_path / "p.parquet", grey), 10, tmp_path / "out", threshold=0.99)
    )
    assert report["dedup"]["dropped"] >= 1


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


def save_vit(path: Path, model: VisionTransformer) -> Path:
    from tenfold.export.weights import save_own

    return save_own(path, model.state_dict(), "vit", model.config)


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


def test_kmeans_over_workers_gives_the_tree_of_one_process(pool: Path, tmp_path: Path) -> None:
    config = CurateConfig(
        "pixels", pool, 50, tmp_path / "one", threshold=0.8, levels=(4,), iterations=1, shard_rows=256
    )
    spread = replace(config, out=tmp_path / "many", spread=0, workers=2)
    assert curate(config) == curate(spread)
    for name in ("tree.parquet", "centroids-1.npy"):
        one, many = (tmp_path / side / "cluster/tree/tree" / name for side in ("one", "many"))
        assert one.read_bytes() == many.read_bytes()


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


def test_an_empty_pool_and_wrong_settings_are_refused_before_any_work(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        curate(CurateConfig("pixels", tmp_path / "empty", 5, tmp_path / "out", threshold=0.8))
    write_pool(tmp_path / "none.parquet", [])
    with pytest.raises(DataError, match="has no rows"):
        curate(CurateConfig("pixels", tmp_path / "none.parquet", 5, tmp_path / "out", threshold=0.8))
    for name, value in (("target", 0), ("threshold", 1.5), ("k", 0), ("retrieve_share", 2.0), ("threshold", np.nan)):
        with pytest.raises(UsageError, match=name):
            replace(CurateConfig("pixels", pool, 5, tmp_path / "out"), **{name: value})
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


def test_damaged_shards_name_the_file_and_the_field(tmp_path: Path) -> None:
    good, wide = shard_of(tmp_path / "good.parquet", angles(1, 2)), shard_of(tmp_path / "wide.parquet", np.eye(3))
    assert np.linalg.norm(read_vectors(good), axis=1) == pytest.approx([1, 1])
    with pytest.raises(DataError, match=r"wide\.parquet: field vector has width 3; the other shards have 2"):
        Vectors([good, wide])[1]
    for value in (np.nan, np.inf):
        bad = shard_of(tmp_path / "bad.parquet", np.array([[1, 0], [0, value]]))
        with pytest.raises(DataError, match=r"bad\.parquet: field vector is not finite in 1 rows, first row 1"):
            read_vectors(bad)
    pq.write_table(pa.table({"vector": ["a"]}), tmp_path / "text.parquet")
    with pytest.raises(DataError, match=r"text\.parquet: field vector is string"):
        read_vectors(tmp_path / "text.parquet")
    (tmp_path / "torn.parquet").write_bytes(good.read_bytes()[:100])
    with pytest.raises(DataError, match=r"torn\.parquet: field vector cannot be read"):
        read_vectors(tmp_path / "torn.parquet")
    with pytest.raises(DataError, match=r"good\.parquet.*kept"):
        read_column(good, "kept")


def test_default_levels_fall_ten_to_one_and_end_at_ten() -> None:
    assert default_levels(3) == (1,)
    assert default_levels(9469) == (473, 47)
    assert default_levels(200_000_000) == (10_000_000, 1_000_000, 100_000, 10_000, 1_000)

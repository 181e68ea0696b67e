"""Training images and k-NN sets: tiles that do not touch what is held back, subsets of every class, streams that resume."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tenfold.data.sources import open_source
from tenfold.engine.task import Shard
from tenfold.errors import DataError
from tenfold.vision.backbones.vit import VitConfig
from tenfold.vision.pretraining.crops import MultiCropConfig
from tenfold.vision.pretraining.photographs import (
    HELD_BACK,
    TILE,
    Mixed,
    Photographs,
    Subset,
    TileSource,
    open_photographs,
)
from vision.labelled_images import colour_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Red and blue images in two classes, eight of each."""
    return colour_folder(tmp_path / "classes", blue=8, red=8)


def test_a_subset_of_a_folder_has_every_class(test_data: Path, tmp_path: Path) -> None:
    rows = next(pq.ParquetFile(test_data / "vision/imagenette160_val.parquet").iter_batches(batch_size=60))
    for part in ("train", "val"):
        for i, (data, label) in enumerate(zip(rows["image"], rows["label"])):
            path = tmp_path / part / str(label) / f"{i}.webp"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.as_py())
    photographs = open_photographs(tmp_path / "train", tmp_path / "val", None, 32, rows=30)
    bank, val = photographs.labels()
    assert len(bank) == len(val) == 30
    assert len(bank.unique()) >= 8
    shutil.rmtree(tmp_path / "val" / "0")
    with pytest.raises(DataError, match="classes"):
        open_photographs(tmp_path / "train", tmp_path / "val", None, 32)


def test_no_tile_for_training_shows_a_column_that_is_held_back(tmp_path: Path) -> None:
    columns = np.arange(160, dtype=np.uint8)[None, :, None].repeat(200, 0).repeat(3, 2)  # a pixel says its column
    columns = np.concatenate([columns] * 3, 1)[:, :480]
    columns[:, 160:320, 1], columns[:, 320:, 1] = 200, 201
    Image.fromarray(columns).save(tmp_path / "scene.png")
    training, held = (TileSource([tmp_path / "scene.png"], held_back=part) for part in (False, True))
    border = int(480 * (1 - HELD_BACK))
    assert {tuple(pixel) for tile in training for pixel in tile.image[0]} <= {tuple(p) for p in columns[0, :border]}
    assert {tuple(pixel) for tile in held for pixel in tile.image[0]} <= {tuple(p) for p in columns[0, border:]}
    assert (len(training), len(held)) == (4 * 9, 2 * 1)  # every 32 pixels, and every 96
    assert training.classes == ("scene",)
    assert {tile.image.shape for tile in (*training, *held)} == {(TILE, TILE, 3)}


def test_a_subset_is_always_the_same_and_its_labels_are_those_of_its_images(folder: Path) -> None:
    source = open_source(folder)
    first, again = Subset(source, 7), Subset(source, 7)
    assert [sample.name for sample in first] == [sample.name for sample in again]
    assert len({sample.name for sample in first}) == len(first) == 7
    assert first.labels is not None
    assert first.labels.tolist() == [sample.label for sample in first]
    assert set(first.labels) == {0, 1}


def test_neighbours_of_raw_pixels_and_of_features_are_scored_alike(folder: Path) -> None:
    photographs = open_photographs(folder, folder, side=16, eval_side=16)
    assert photographs.floor(3) == 100.0
    mean = photographs.knn(lambda x: x.mean((2, 3)), VitConfig(), 8, 3, batch=5)
    blind = photographs.knn(lambda x: torch.ones(len(x), 4), VitConfig(), 16, 16)
    assert mean == 100.0
    assert blind == 50.0


def test_batches_have_an_axis_of_views_and_one_of_images(folder: Path) -> None:
    photographs = open_photographs(folder, None, side=24, eval_side=16)
    crops = MultiCropConfig(global_size=16, local_size=8, local_crops=3)
    batch = next(iter(photographs.batches(crops, 4, 0, Shard(0, 2), 0.0, 0)))
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "global_crops": (2, 2, 3, 16, 16),  # two of the four images are this rank's
        "local_crops": (3, 2, 3, 8, 8),
    }
    assert batch["global_crops"].dtype == torch.uint8


def test_a_set_without_labels_is_refused_for_scoring(folder: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(folder / "red", plain)
    with pytest.raises(DataError, match=r"plain has no labels, and k-NN needs them in both sets"):
        open_photographs(folder, plain, 16, 16)


def mixed(folder: Path, seed: int = 0) -> Mixed:
    """Batches of large crops, three times as often as of small ones."""
    photographs = open_photographs(folder, None, side=24, eval_side=16)
    crops = [MultiCropConfig(global_size=side, local_crops=0, global_crops=1) for side in (16, 8)]
    return Mixed([photographs.batches(c, 2, 0, Shard(), 0.0, 0) for c in crops], [3.0, 1.0], seed)


def drawn(stream: Mixed, count: int) -> list[torch.Tensor]:
    return [batch["global_crops"] for batch in itertools.islice(stream, count)]


def test_a_mix_goes_on_from_a_saved_state_as_if_it_had_not_stopped(folder: Path) -> None:
    straight, stopped, resumed = drawn(mixed(folder), 60), mixed(folder), mixed(folder)
    assert all(torch.equal(a, b) for a, b in zip(drawn(stopped, 25), straight))
    resumed.load_state_dict(stopped.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(drawn(resumed, 35), straight[25:], strict=True))
    sides = [crops.shape[-1] for crops in straight]
    assert abs(sides.count(16) - 45) <= 3 * (60 * 0.75 * 0.25) ** 0.5
    assert sides != [crops.shape[-1] for crops in drawn(mixed(folder, seed=1), 60)]


def test_without_labelled_images_there_is_no_score(folder: Path) -> None:
    photographs = Photographs("x", open_source(folder), None, None)
    assert photographs.floor(5) is None
    assert photographs.knn(lambda x: x.flatten(1), VitConfig(), 16, 5) is None

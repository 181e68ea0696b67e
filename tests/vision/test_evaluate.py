"""`tenfold eval knn | linear | attentive | retrieval`: scores stand beside raw pixels and the same network untrained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tenfold.data.sources import InMemory, open_source
from tenfold.data.tensors import save_own
from tenfold.vision.backbones.images import normalize
from tenfold.vision.backbones.vit import VitConfig
from tenfold.vision.evaluate import AttentiveImages, LabelledImages, attentive, embed, knn, linear, retrieval
from vision.dense_inputs import mini_weights
from vision.labelled_images import colour_folder

CONFIG = VitConfig(16, 1, 2, patch_size=8, image_size=24)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Weights of a network that was never trained, and two sets of colours."""
    folder = tmp_path_factory.mktemp("sets")
    torch.manual_seed(0)
    weights = save_own(folder / "w.safetensors", CONFIG.build().state_dict(), "vit", CONFIG)
    train = colour_folder(folder / "train", blue=4, red=8)
    return weights, train, colour_folder(folder / "val", blue=1, red=3)


def test_colours_are_told_apart_by_raw_pixels_and_only_a_k_that_fits_is_scored(
    sets: tuple[Path, Path, Path],
) -> None:
    rows = knn(LabelledImages(*sets))
    assert (rows["train images"], rows["val images"]) == (12, 4)
    assert set(rows) - {"train images", "val images"} == {
        f"k-NN 10, {name}" for name in ("these weights", "untrained", "raw pixels")
    }
    assert rows["k-NN 10, these weights"] == rows["k-NN 10, untrained"]  # they are: same seed, no training


def test_the_chance_of_retrieval_is_the_share_of_the_asked_class(sets: tuple[Path, Path, Path]) -> None:
    rows = retrieval(LabelledImages(*sets))
    assert rows["mAP, random order"] == pytest.approx(100 * (3 * 8 / 12 + 4 / 12) / 4)
    assert rows["mAP, raw pixels"] == pytest.approx(100.0)
    assert (rows["gallery images"], rows["queries"]) == (12, 4)


def test_an_attentive_probe_reads_a_colour_from_pixels(sets: tuple[Path, Path, Path]) -> None:
    rows = attentive(AttentiveImages(*sets, epochs=20))
    assert rows["attentive, raw pixels"] == 100.0
    assert 0 <= rows["attentive, these weights"] <= 100


@torch.inference_mode()
def test_features_do_not_depend_on_the_batch_that_an_image_is_in(sets: tuple[Path, Path, Path]) -> None:
    model, images = CONFIG.build().eval(), InMemory(open_source(sets[1]), 24)
    found = embed(model, images, lambda m, output: m.feature(output), batch=5)
    whole = model(normalize(torch.from_numpy(images.images), CONFIG)).cls_token
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
    assert np.array_equal(images.labels, [0] * 4 + [1] * 8)


@pytest.fixture(scope="module")
def imagenette(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    weights = mini_weights(tmp_path_factory.mktemp("weights"))
    train, val = (test_data / f"vision/imagenette160_{part}.parquet" for part in ("train", "val"))
    return LabelledImages(weights, train, val, limit=200)


@pytest.mark.parametrize(("task", "key"), [(knn, "k-NN 20, "), (linear, "linear, ")])
def test_every_score_of_photographs_stands_beside_its_floors(
    imagenette: LabelledImages, task: object, key: str
) -> None:
    scores = task(imagenette)  # type: ignore[operator]
    assert scores["train images"] == 200
    for side in ("these weights", "untrained", "raw pixels"):
        assert 8 < scores[key + side] < 60
    assert scores[key + "these weights"] == scores[key + "untrained"]


def test_the_first_rows_are_used_where_a_limit_says_so(imagenette: LabelledImages, tmp_path: Path) -> None:
    table = pq.ParquetFile(imagenette.val).read_row_group(0).slice(0, 30)
    pq.write_table(table, tmp_path / "thirty.parquet")
    rows = retrieval(LabelledImages(imagenette.weights, tmp_path / "thirty.parquet", tmp_path / "thirty.parquet", 20))
    assert (rows["gallery images"], rows["queries"]) == (20, 20)

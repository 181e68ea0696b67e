"""`tenfold eval segmentation | depth | discovery | tracking`: frozen patches beside baselines without a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tenfold.errors import DataError
from tenfold.images.frames import open_frames
from tenfold.vision.backbones.vit import VIT_CONFIGS
from tenfold.vision.evaluate_dense import (
    DenseProbe,
    Discovery,
    Tracking,
    depth,
    discovery,
    features,
    initial,
    networks,
    segmentation,
    tracking,
)
from tenfold.vision.probes.tracking import TEMPERATURES
from vision.dense_inputs import cut, mini, mini_weights, npy, png, write


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def clip(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clip") / "clip.parquet"
    return cut(test_data / "vision/camvid_val.parquet", out, slice(0, 4), 96, 72)


def test_segmentation_prints_the_floors_beside_the_weights(weights: Path, clip: Path, tmp_path: Path) -> None:
    rows = segmentation(DenseProbe(weights, clip, clip, epochs=2, limit=3))
    assert {"mIoU, these weights", "mIoU, untrained", "mIoU, position prior", "mIoU, colour, texture, position"} <= set(
        rows
    )
    assert (rows["train images"], rows["val images"]) == (3, 3)
    assert all(0 <= value <= 100 for name, value in rows.items() if name.startswith(("mIoU", "pixels")))
    other = write(
        tmp_path / "o.parquet", [png(np.zeros((16, 16, 3), np.uint8))], mask=[png(np.eye(16, dtype=np.uint8))]
    )
    with pytest.raises(DataError, match=r"the classes of .* are not those of"):
        segmentation(DenseProbe(weights, clip, other, epochs=1))


def test_depth_prints_the_error_of_the_mean_beside_the_weights(weights: Path, clip: Path, tmp_path: Path) -> None:
    images = pq.read_table(clip)["image"].to_pylist()[:2]
    slope = npy(np.linspace(1, 5, 72)[:, None].repeat(96, 1))
    data = write(tmp_path / "depth.parquet", images, depth=[slope] * 2)
    rows = depth(DenseProbe(weights, data, data, epochs=2))
    assert rows["RMSE m, mean depth"] == pytest.approx(np.linspace(1, 5, 72).std(), rel=1e-4)
    assert {"RMSE m, these weights", "RMSE m, untrained", "|error| / depth, these weights"} <= set(rows)


def test_an_object_in_the_middle_is_found_by_the_box_in_the_middle(weights: Path, tmp_path: Path) -> None:
    mask = np.zeros((48, 48), np.uint8)
    mask[12:36, 12:36] = 1
    image = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    data = write(tmp_path / "objects.parquet", [png(image)] * 3, mask=[png(mask)] * 3)
    rows = discovery(Discovery(weights, data, limit=2))
    assert rows["val images"] == 2
    assert (rows["CorLoc, middle half"], rows["mask IoU, middle half"]) == (100.0, 100.0)
    assert (rows["CorLoc, whole image"], rows["mask IoU, whole image"]) == (0.0, 25.0)
    assert {"CorLoc, these weights", "CorLoc, untrained", "CorLoc, raw 16 px patches"} <= set(rows)


def test_tracking_takes_the_middle_temperature_unless_it_may_choose_on_other_clips(weights: Path, clip: Path) -> None:
    rows = tracking(Tracking(weights, clip, frames=4))
    assert rows["temperature, these weights"] == TEMPERATURES[len(TEMPERATURES) // 2]
    assert {"mIoU, these weights", "mIoU, raw 16 px patches", "mIoU, DIS optical flow"} <= set(rows)
    chosen = tracking(Tracking(weights, clip, train=clip, frames=4))
    assert chosen["temperature, these weights"] in TEMPERATURES
    assert chosen["mIoU, these weights"] >= rows["mIoU, these weights"]  # chosen on the very clip that is scored


def test_the_untrained_network_is_always_the_same_and_drawing_it_leaves_the_generator() -> None:
    before = torch.get_rng_state()
    first, again = (initial(VIT_CONFIGS["mini"]).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], value) for name, value in again.items())


def test_the_weights_come_first_and_no_network_can_be_trained(weights: Path) -> None:
    found = networks(weights)
    assert list(found) == ["these weights", "untrained"]
    assert not any(p.requires_grad for network in found.values() for p in network.parameters())


def test_a_feature_stands_for_every_stride_of_every_frame(clip: Path) -> None:
    model, frames = mini(), open_frames(clip)
    cells = features(model, frames, 12, "test")
    assert [tuple(c.shape) for c in cells] == [(6, 8, 192)] * 4
    assert {c.dtype for c in cells} == {torch.float16}

"""Baselines of dense prediction: colour, texture and position by hand, the usual class of a place, the mean depth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tenfold.images.frames import Frames, open_frames
from tenfold.vision.probes.dense_baselines import depth_floors, handmade, segmentation_floors
from vision.dense_inputs import cut


def frames(masks: list[Tensor] | None = None, depths: list[Tensor] | None = None) -> Frames:
    """Noise with these masks of three classes, or these depths."""
    targets = [*(masks or []), *(depths or [])]
    generator = torch.Generator().manual_seed(0)
    images = tuple(
        torch.randint(0, 256, (*target.shape, 3), dtype=torch.uint8, generator=generator) for target in targets
    )
    names = tuple(str(n) for n in range(len(targets)))
    return Frames("noise", names, images, tuple(masks or ()), tuple(depths or ()), ("a", "b", "c"), 255)


def test_a_uniform_image_has_its_colour_no_texture_and_its_position() -> None:
    image = torch.tensor([51, 102, 204], dtype=torch.uint8).expand(24, 32, 3)
    cells = handmade(image)
    assert cells.shape == (6, 8, 54)
    for scale in range(3):
        part = cells[..., scale * 15 : (scale + 1) * 15]
        inner = part[1:-2, 1:-2]  # edges of the last row and column are padded
        torch.testing.assert_close(inner[..., :3], torch.tensor([0.2, 0.4, 0.8]).expand_as(inner[..., :3]))
    y, x = torch.linspace(-1, 1, 6), torch.linspace(-1, 1, 8)
    powers = [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0)]
    expected = torch.stack([y[:, None] ** a * x[None] ** b for a, b in powers], dim=2)
    found = {tuple(column.flatten().tolist()) for column in cells.unbind(2)}
    assert {tuple(column.flatten().tolist()) for column in expected.unbind(2)} <= found


def test_a_class_that_depends_on_the_place_is_found_by_the_prior_and_not_by_the_majority() -> None:
    mask = torch.zeros(48, 64, dtype=torch.long)
    mask[:, 40:] = 1
    floors = segmentation_floors(frames([mask] * 3), frames([mask] * 2), 16, epochs=1)
    assert floors["position prior"] > 90
    assert floors["majority class"] == pytest.approx(
        100 * (40 / 64) / 2
    )  # of the two classes that occur, one is missed
    assert floors["ceiling: true labels of 16 px patches"] > 85


def test_ignored_pixels_choose_no_majority() -> None:
    mask = torch.full((32, 32), 255)
    mask[:8], mask[8:10] = 2, 1
    floors = segmentation_floors(frames([mask] * 2), frames([mask] * 2), 8, epochs=1)
    assert floors["majority class"] == pytest.approx(100 * (256 / 320) / 2)


def test_the_mean_depth_is_of_known_training_pixels_and_its_error_that_of_the_definition() -> None:
    near, far = torch.full((32, 32), 2.0), torch.full((32, 32), 4.0)
    near[:16] = 0.0  # unknown
    truth = torch.full((32, 32), 3.0)
    floors = depth_floors(frames(depths=[near, far]), frames(depths=[truth, truth]), epochs=1)
    mean = (2.0 * 512 + 4.0 * 1024) / 1536
    assert floors["mean depth"] == pytest.approx(mean - 3.0, rel=1e-5)


def test_floors_of_a_cut_of_camvid_stand_in_their_order(test_data: Path, tmp_path: Path) -> None:
    train = open_frames(cut(test_data / "vision/camvid_train.parquet", tmp_path / "t.parquet", slice(0, 24), 120, 90))
    val = open_frames(cut(test_data / "vision/camvid_val.parquet", tmp_path / "v.parquet", slice(0, 6), 120, 90))
    floors = segmentation_floors(train, val, 8, epochs=30)
    assert floors["majority class"] < floors["position prior"] < floors["ceiling: true labels of 8 px patches"]
    assert floors["colour, texture, position"] > floors["majority class"]
    assert handmade(val.images[0]).shape[:2] == (22, 30)
    assert handmade(val.images[0]).isfinite().all()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_floors_on_camvid_are_the_known_ones(test_data: Path) -> None:
    train, val = (open_frames(test_data / f"vision/camvid_{part}.parquet") for part in ("train", "val"))
    floors = segmentation_floors(train, val, 8)
    assert floors["majority class"] == pytest.approx(2.7, abs=0.1)
    assert floors["position prior"] == pytest.approx(16.7, abs=0.5)
    assert floors["colour, texture, position"] == pytest.approx(28.6, abs=1.5)
    assert floors["ceiling: true labels of 8 px patches"] == pytest.approx(85.0, abs=0.5)

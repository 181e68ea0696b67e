"""What object discovery counts: boxes of connected parts, half an overlap, and floors that look at nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tenfold.cli import main
from tenfold.errors import DataError
from tenfold.images.frames import Frames
from tenfold.vision.probes.correspond import object_mask
from tenfold.vision.probes.discovery import blind_boxes, box_iou, box_of, discovery_score, true_boxes
from vision.dense_inputs import mini_weights, png, write


def frames(*masks: torch.Tensor) -> Frames:
    images = tuple(torch.zeros(*mask.shape, 3, dtype=torch.uint8) for mask in masks)
    return Frames("test", tuple("abc"[: len(masks)]), images, masks, (), ("background", "thing", "other"), 255)


def squares(*boxes: tuple[int, int, int, int, int], side: int = 20) -> torch.Tensor:
    mask = torch.zeros(side, side, dtype=torch.long)
    for top, left, bottom, right, label in boxes:
        mask[top:bottom, left:right] = label
    return mask


def test_each_connected_part_of_a_class_is_an_object_and_neither_background_nor_ignored_is() -> None:
    mask = squares((1, 1, 5, 5, 1), (8, 8, 12, 14, 1), (5, 1, 8, 3, 2), (15, 15, 20, 20, 255))
    assert sorted(true_boxes(mask, 255)) == [(1, 1, 5, 5), (5, 1, 8, 3), (8, 8, 12, 14)]
    tiny = squares((0, 0, 1, 1, 1), side=40)
    assert true_boxes(tiny, 255) == []  # 1 of 1,600 pixels


def test_boxes_overlap_as_areas_do() -> None:
    assert box_iou((0, 0, 4, 4), (0, 0, 4, 4)) == 1
    assert box_iou((0, 0, 4, 4), (0, 2, 4, 6)) == pytest.approx(8 / 24)
    assert box_iou((0, 0, 4, 4), (4, 4, 8, 8)) == 0
    assert box_of(squares((3, 2, 7, 9, 1)) > 0) == (3, 2, 7, 9)
    assert box_of(torch.zeros(3, 3, dtype=torch.bool)) == (0, 0, 0, 0)


def test_the_nearest_object_counts_and_images_without_one_do_not() -> None:
    two, none = squares((1, 1, 5, 5, 1), (10, 10, 18, 18, 2)), squares()
    right, wrong = squares((10, 10, 18, 17, 1)) > 0, squares((0, 8, 6, 14, 1)) > 0
    assert discovery_score([right, right], frames(two, none)).corloc == 100
    score = discovery_score([right, wrong], frames(two, two))
    assert score.corloc == 50
    assert score.miou == pytest.approx(50 * 56 / 80)
    with pytest.raises(DataError, match="no object"):
        discovery_score([right], frames(none))


def test_an_object_of_other_features_is_found_where_it_is() -> None:
    torch.manual_seed(0)
    ground, thing = torch.randn(24), torch.randn(24)
    cells = torch.where((squares((4, 5, 9, 12, 1)) > 0)[..., None], thing, ground) + 0.05 * torch.randn(20, 20, 24)
    found = object_mask(cells, 160, 160)
    score = discovery_score([found], frames(squares((32, 40, 72, 96, 1), side=160)))
    assert score.corloc == 100
    assert score.miou > 90
    assert set(blind_boxes(8, 8)) == {"whole image", "middle half", "middle three quarters"}
    assert box_of(blind_boxes(8, 12)["middle half"]) == (2, 3, 6, 9)


def test_the_command_prints_the_weights_and_every_floor(
    test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On CamVid's cars, the only objects of which our data has masks."""
    table = pq.read_table(test_data / "vision/camvid_val.parquet").slice(0, 6)
    car = table.schema.metadata[b"classes"].decode().split(",").index("Car")
    size = (240, 180)
    images = [np.array(Image.open(io.BytesIO(b.as_py())).convert("RGB").resize(size)) for b in table["image"]]
    masks = [np.array(Image.open(io.BytesIO(b.as_py())).resize(size, Image.Resampling.NEAREST)) for b in table["mask"]]
    cars = [png((mask == car).astype(np.uint8)) for mask in masks]
    path = write(tmp_path / "cars.parquet", [png(image) for image in images], mask=cars)
    assert main(["eval", "discovery", str(mini_weights(tmp_path)), "--val", str(path), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    for name in ("these weights", "untrained", "raw 16 px patches", "whole image", "middle half"):
        assert 0 <= scores[f"CorLoc, {name}"] <= 100
        assert 0 <= scores[f"mask IoU, {name}"] <= 100
    assert scores["mask IoU, these weights"] == scores["mask IoU, untrained"]  # they are: same seed, no training
    assert main(["eval", "discovery", str(tmp_path / "mini.safetensors")]) == 2
    assert "lacks --val" in capsys.readouterr().err

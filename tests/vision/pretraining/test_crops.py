"""Multi-crop augmentation draws what the papers say: each operation as often, areas and aspects within their bounds."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tenfold.config import from_dict, to_dict
from tenfold.data.sample import Sample
from tenfold.data.sources import open_source
from tenfold.errors import UsageError
from tenfold.vision.pretraining.crops import BLUR, MultiCrop, MultiCropConfig, collate_crops, normalize

DRAWS = 2000


@pytest.fixture(scope="module")
def photograph(test_data: Path) -> np.ndarray:
    return open_source(test_data / "vision/imagenette160_val.parquet")[3].image


@pytest.mark.parametrize("blur", ["paper", "released"])
def test_every_operation_is_as_frequent_as_configured(blur: str) -> None:
    config = MultiCropConfig(blur=blur)  # type: ignore[arg-type]
    make, generator = MultiCrop(config), np.random.default_rng(0)
    drawn = [make.draw(375, 500, generator) for _ in range(DRAWS)]
    blurs = [BLUR[blur][0], BLUR[blur][1]] + [BLUR[blur][2]] * 8
    for place in range(10):
        views = [views[place] for views in drawn]
        expected = {
            "flip": (0.5, sum(v.flip for v in views)),
            "jitter": (0.8, sum(bool(v.jitter) for v in views)),
            "gray": (0.2, sum(v.gray for v in views)),
            "blur": (blurs[place], sum(v.sigma is not None for v in views)),
            "solarize": (0.2 if place == 1 else 0.0, sum(v.solarize for v in views)),
        }
        for name, (p, count) in expected.items():
            assert abs(count - p * DRAWS) <= 3 * math.sqrt(DRAWS * p * (1 - p)) + 1e-9, (place, name)
    sigmas = np.array([v.sigma for views in drawn for v in views if v.sigma is not None])
    assert 0.1 <= sigmas.min() < 0.11
    assert 1.99 < sigmas.max() <= 2.0
    orders = [tuple(kind for kind, _ in v.jitter) for views in drawn for v in views if v.jitter]
    assert all(abs(orders.count(order) - len(orders) / 24) < 5 * math.sqrt(len(orders) / 24) for order in set(orders))
    assert len(set(orders)) == 24


def test_boxes_have_the_areas_and_aspects_allowed_and_lie_inside() -> None:
    make, generator = MultiCrop(MultiCropConfig()), np.random.default_rng(0)
    for _ in range(200):
        for place, view in enumerate(make.draw(375, 500, generator)):
            top, left, height, width = view.box
            low, high = (0.32, 1.0) if place < 2 else (0.05, 0.32)
            assert low * 0.97 <= height * width / (375 * 500) <= high * 1.03
            assert 0.73 <= width / height <= 1.37
            assert top >= 0 <= left
            assert top + height <= 375
            assert left + width <= 500
    for height, width in ((4, 1000), (1000, 4), (1, 1)):
        box = make.draw(height, width, generator)[0].box
        assert 0.7 <= box[3] / box[2] <= 1.4
        assert box[0] + box[2] <= height


def test_equal_generators_give_equal_crops_and_leave_the_image_alone(photograph: np.ndarray) -> None:
    before, make = photograph.copy(), MultiCrop(MultiCropConfig())
    first, second = (make(photograph, np.random.default_rng(7)) for _ in range(2))
    other = make(photograph, np.random.default_rng(8))
    assert torch.equal(first.global_crops, second.global_crops)
    assert first.local_crops is not None
    assert second.local_crops is not None
    assert torch.equal(first.local_crops, second.local_crops)
    assert not torch.equal(first.global_crops, other.global_crops)
    assert np.array_equal(before, photograph)
    assert first.global_crops.shape == (2, 3, 224, 224)
    assert first.local_crops.shape == (8, 3, 96, 96)


def test_a_crop_of_the_images_own_size_does_not_write_into_the_image(photograph: np.ndarray) -> None:
    before = photograph.copy()
    config = MultiCropConfig(global_size=160, global_scale=(1.0, 1.0), ratio=(1.0, 1.0), local_crops=0, flip=1.0)
    crops = MultiCrop(config)(photograph, np.random.default_rng(0))
    assert crops.local_crops is None
    assert np.array_equal(before, photograph)


def test_a_batch_is_joined_view_by_view(photograph: np.ndarray) -> None:
    make = MultiCrop(MultiCropConfig(global_size=32, local_size=16, local_crops=3))
    items = [make.loader_transform(Sample(photograph, 0, "a"), np.random.default_rng(i)) for i in range(5)]
    batch = collate_crops(items)
    assert batch.local_crops is not None
    for image, item in enumerate(items):
        assert item.local_crops is not None
        for view in range(2):
            assert torch.equal(batch.global_crops.unflatten(0, (2, 5))[view, image], item.global_crops[view])
        for view in range(3):
            assert torch.equal(batch.local_crops.unflatten(0, (3, 5))[view, image], item.local_crops[view])


def test_normalize_takes_off_the_mean_and_divides_by_the_deviation() -> None:
    images = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).remainder(256).to(torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (images.double() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(normalize(images, mean, std).double(), expected, atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"global_size": 0},
        {"local_crops": -1},
        {"global_scale": (0.5, 0.2)},
        {"local_scale": (0.0, 0.2)},
        {"flip": 1.5},
        {"jitter": (0.4, 0.4, 0.2, 0.6)},
        {"jitter": (1.4, 0.4, 0.2, 0.1)},
        {"blur": (0.1, 0.2, 1.2)},
    ],
)
def test_a_wrong_value_names_its_field(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"crops.{next(iter(wrong))}"):
        MultiCropConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("blur", ["paper", (0.3, 0.3, 0.0)])
def test_a_configuration_survives_its_run_folder(blur: object) -> None:
    config = replace(MultiCropConfig(), blur=blur)  # type: ignore[arg-type]
    assert from_dict(MultiCropConfig, to_dict(config)) == config
    with pytest.raises(UsageError, match="did you mean 'paper'"):
        from_dict(MultiCropConfig, {"blur": "papers"})

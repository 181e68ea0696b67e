"""Image augmentation is Pillow's and torchvision's: resize within a grey level, and every operation beside Pillow's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tenfold.bench.augment import reference
from tenfold.data.sources import open_source
from tenfold.images.augment import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    View,
    apply,
    blur_taps,
    color_matrix,
    resize,
    shift_hue,
)
from tenfold.vision.pretraining.crops import MultiCrop, MultiCropConfig

PLAIN = View((0, 0, 160, 160), flip=False, jitter=(), gray=False, sigma=None, solarize=False)


@pytest.fixture(scope="module")
def photograph(test_data: Path) -> np.ndarray:
    return open_source(test_data / "vision/imagenette160_val.parquet")[3].image


def made(view: View, image: np.ndarray, side: int = 160) -> np.ndarray:
    out = np.empty((side, side, 3), np.uint8)
    apply(view, image, out)
    return out.astype(int)


def test_resize_is_within_a_grey_level_of_pillow(photograph: np.ndarray) -> None:
    """Pillow's two passes by themselves, horizontal first: Pillow 13 turns the order round where that is cheaper."""
    total = count = 0
    for index, view in enumerate(MultiCrop(MultiCropConfig(local_crops=38)).draw(160, 160, np.random.default_rng(0))):
        top, left, height, width = view.box
        cut = photograph[top : top + height, left : left + width]
        side = (32, 48, 96, 224)[index % 4]
        across = Image.fromarray(cut).resize((side, height), Image.Resampling.BICUBIC)
        off = np.abs(resize(cut, side) - np.array(across.resize((side, side), Image.Resampling.BICUBIC)).astype(int))
        assert off.max() <= (1 if side <= min(height, width) else 2)  # enlarging adds up the rounding of both passes
        total, count = total + off.sum(), count + off.size
    assert total / count <= 0.01


@pytest.mark.parametrize(
    ("change", "most", "mean"),
    [
        ({}, 0, 0),
        ({"flip": True}, 0, 0),
        ({"jitter": ((BRIGHTNESS, 1.4),)}, 1, 0.05),
        ({"jitter": ((BRIGHTNESS, 0.6),)}, 1, 0.05),
        ({"jitter": ((CONTRAST, 1.4),)}, 1, 0.1),
        ({"jitter": ((CONTRAST, 0.63),)}, 1, 0.1),
        ({"jitter": ((SATURATION, 1.2),)}, 1, 0.3),
        ({"jitter": ((SATURATION, 0.8),)}, 1, 0.3),
        ({"jitter": ((HUE, 0.1),)}, 10, 1.2),  # both sides round to 8-bit HSV, on other grids
        ({"jitter": ((HUE, -0.1),)}, 10, 1.2),
        ({"gray": True}, 1, 0.01),
        ({"sigma": 0.3}, 1, 0.1),
        ({"sigma": 1.1}, 1, 0.1),
        ({"sigma": 2.0}, 1, 0.1),
        ({"solarize": True}, 0, 0),
    ],
)
def test_each_operation_is_pillows(photograph: np.ndarray, change: dict[str, object], most: int, mean: float) -> None:
    view = PLAIN._replace(**change)
    off = np.abs(made(view, photograph) - reference(Image.fromarray(photograph), view, 160))
    assert off.max() <= most
    assert off.mean() <= mean
    assert change == {} or np.abs(made(view, photograph) - photograph).mean() > 1 or view.sigma == 0.3


def test_jitter_is_applied_in_the_order_drawn(photograph: np.ndarray) -> None:
    first = PLAIN._replace(jitter=((BRIGHTNESS, 1.4), (CONTRAST, 0.6)))
    second = PLAIN._replace(jitter=tuple(reversed(first.jitter)))
    assert np.abs(made(first, photograph) - made(second, photograph)).max() > 5
    for view in (first, second):
        off = np.abs(made(view, photograph) - reference(Image.fromarray(photograph), view, 160))
        assert off.max() <= 2


@settings(max_examples=50, deadline=None)
@given(st.floats(0.1, 2.0))  # what is drawn
def test_blur_taps_are_symmetric_add_up_to_one_and_fall_from_the_middle(sigma: float) -> None:
    taps = blur_taps(sigma)
    assert taps.sum() == 1.0
    assert np.array_equal(taps, taps[::-1])
    assert len(taps) % 2 == 1
    assert (np.diff(taps[len(taps) // 2 :]) <= 0).all()
    assert np.array_equal(taps * 256, np.rint(taps * 256))


@pytest.mark.parametrize("kind", [CONTRAST, SATURATION])
def test_a_grey_picture_of_one_level_is_left_alone_by_contrast_and_saturation(kind: int) -> None:
    grey = np.full((4, 5, 3), 90, np.uint8)
    matrix = color_matrix(kind, 1.7, grey)
    assert np.allclose(matrix[:, :3] @ (90, 90, 90) + matrix[:, 3], 90, atol=0.51)


def test_hue_turned_by_nothing_or_by_the_whole_circle_is_the_same_picture(photograph: np.ndarray) -> None:
    still, turned, half = (photograph.copy() for _ in range(3))
    shift_hue(still, 0.0)
    shift_hue(turned, 256 / 255)
    shift_hue(half, 0.5)
    assert np.array_equal(still, turned)
    assert np.abs(still.astype(int) - photograph).mean() < 1.5  # what 8-bit HSV rounds
    assert np.abs(half.astype(int) - photograph).mean() > 5


def test_a_view_does_not_write_into_its_image(photograph: np.ndarray) -> None:
    before = photograph.copy()
    made(PLAIN._replace(flip=True, gray=True, sigma=1.0, solarize=True, jitter=((BRIGHTNESS, 0.5),)), photograph)
    assert np.array_equal(before, photograph)

"""Bicubic resize of images stays within a grey level of Pillow, and leaves an image of the right size alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tenfold.data.sources import open_source
from tenfold.images.resize import resize


@pytest.mark.parametrize(("height", "width"), [(48, 80), (37, 160), (100, 31)])
def test_a_photograph_made_smaller_is_within_a_grey_level_of_pillow(test_data: Path, height: int, width: int) -> None:
    photograph = open_source(test_data / "vision/imagenette160_val.parquet")[3].image
    found = resize(torch.from_numpy(photograph), height, width)
    assert found.is_contiguous()
    across = Image.fromarray(photograph).resize((width, photograph.shape[0]), Image.Resampling.BICUBIC)
    expected = np.array(across.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    assert found.shape == (height, width, 3)
    assert np.abs(found.numpy() - expected).max() <= 1


def test_one_colour_stays_and_the_right_size_is_returned_as_it_is() -> None:
    image = torch.tensor([12, 200, 255], dtype=torch.uint8).expand(7, 9, 3)
    assert resize(image, 7, 9) is image
    assert resize(image, 20, 3).unique(dim=0).tolist() == [[[12, 200, 255]] * 3]

"""Resize gives Pillow's pixels, and leaves an image of the wanted size alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tenfold.images.resize import resize


@pytest.mark.parametrize(("height", "width"), [(24, 36), (50, 31), (128, 200)])
def test_resize_is_within_one_level_of_pillow(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    image = np.array(Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8)).resize((80, 60)))
    ours = resize(torch.from_numpy(image), height, width)
    theirs = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    assert ours.shape == (height, width, 3)
    assert abs(ours.numpy().astype(int) - theirs).max() <= 1


def test_an_image_of_the_wanted_size_is_itself() -> None:
    image = torch.zeros(4, 5, 3, dtype=torch.uint8)
    assert resize(image, 4, 5) is image

"""Image preprocessing: sizes divide into patches, pixels are normalised as written, and folders are read in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from tenfold.errors import UsageError
from tenfold.vision.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD
from tenfold.vision.backbones.images import find_images, fit, load_image, normalize, open_image
from tenfold.vision.backbones.vit import VitConfig

SIDES = st.integers(1, 2000)


@given(SIDES, SIDES, st.none() | st.integers(8, 600), st.integers(1, 32))
def test_both_sides_are_multiples_of_the_patch_and_within_half_of_one(
    height: int, width: int, size: int | None, patch: int
) -> None:
    scale = min(1.0, 512 / max(height, width)) if size is None else size / min(height, width)
    if size is not None and max(height, width) > 4 * min(height, width):
        scale = min(scale, 2 * size / (height * width) ** 0.5)  # the area of four squares, and no more
        assume(scale * max(height, width) <= 4 * size**2 / patch)  # thinner than a patch: bounded once more
    for before, after in zip((height, width), fit(height, width, size, patch)):
        assert after % patch == 0
        assert after >= patch
        assert after == patch or abs(after - before * scale) <= patch / 2 + 1e-6


def test_grey_levels_become_deviations_from_the_mean() -> None:
    images = torch.randint(0, 256, (2, 4, 6, 3), dtype=torch.uint8)
    config = VitConfig(8, 1, 1, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (config.mean, config.std))
    expected = ((images.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(normalize(images, config).double(), expected, atol=1e-5, rtol=1e-5)


def test_an_image_file_is_ready_for_the_network_that_reads_it(tmp_path: Path) -> None:
    Image.fromarray(np.full((50, 80, 3), 51, np.uint8)).save(tmp_path / "grey.png")
    image = load_image(tmp_path / "grey.png", size=32, config=VitConfig(8, 1, 1, patch_size=16))
    assert image.shape == (3, 32, 48)  # 51.2 wide, rounded to whole patches
    for plane, mean, std in zip(image, IMAGENET_MEAN, IMAGENET_STD):
        torch.testing.assert_close(plane, torch.full((32, 48), (0.2 - mean) / std), atol=1e-5, rtol=0)
    with pytest.raises(UsageError, match=r"size = 12: allowed at least one patch \(16 pixels\)"):
        open_image(tmp_path / "grey.png", 12, 16)


def test_folders_are_searched_in_order_and_named_files_kept_as_they_are(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.JPG", "b/deep/3.webp", "b/notes.txt", "a.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "b/folder.png").mkdir()
    found = find_images((tmp_path / "b", tmp_path / "absent.png", tmp_path / "a.png"))
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        *("b/1.JPG", "b/2.png", "b/deep/3.webp"),
        *("absent.png", "a.png"),
    ]

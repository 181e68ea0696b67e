"""Drawing matches, masks and pictures side by side; a picture is written whole or not at all."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from tenfold.data.readers import read_image
from tenfold.errors import StorageError
from tenfold.images.drawing import GAP, match_lines, overlay, palette, side_by_side, write_png


def test_overlay_leaves_what_is_no_class_as_it_is() -> None:
    image = torch.full((4, 6, 3), 100, dtype=torch.uint8)
    mask = torch.tensor([[0, 1, 11, 255, 1, 0]]).repeat(4, 1)
    drawn = overlay(image, mask, 2)
    assert drawn[:, 2:4].equal(image[:, 2:4])
    assert not drawn[:, :2].equal(image[:, :2])
    assert len(palette(11).unique(dim=0)) == 11


def test_lines_reach_from_point_to_point() -> None:
    image = torch.zeros(20, 30, 3, dtype=torch.uint8)
    drawn = match_lines(image, image, torch.tensor([[5.0, 10.0]]), torch.tensor([[25.0, 10.0]]))
    assert drawn.shape == side_by_side([image, image]).shape
    assert drawn[10, 5].sum() > 0
    assert drawn[10, 30 + 6 + 25].sum() > 0
    assert match_lines(image, image, torch.zeros(0, 2), torch.zeros(0, 2)).shape == drawn.shape


def test_a_failed_write_leaves_the_old_picture(tmp_path: Path) -> None:
    drawn = torch.arange(20 * 30 * 3, dtype=torch.uint8).view(20, 30, 3)
    path = write_png(tmp_path / "a.png", drawn)
    before = path.read_bytes()
    assert np.array_equal(read_image(path), drawn.numpy())
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limit[1]))  # the write breaks off after 20 bytes
    try:
        with pytest.raises(StorageError, match="Nothing was replaced"):
            write_png(path, torch.randint(0, 256, (90, 90, 3), dtype=torch.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_pictures_stand_side_by_side_whole_and_on_white() -> None:
    pictures = [torch.full((h, w, 3), shade, dtype=torch.uint8) for h, w, shade in ((4, 3, 10), (2, 5, 20), (6, 1, 30))]
    canvas = side_by_side(pictures)
    assert canvas.shape == (6, 3 + 5 + 1 + 2 * GAP, 3)
    assert canvas[:4, :3].equal(pictures[0])
    assert canvas[:2, 3 + GAP : 8 + GAP].equal(pictures[1])
    assert canvas[:, -1:].equal(pictures[2])
    drawn = sum(picture.numel() for picture in pictures)
    assert int((canvas == 255).sum()) == canvas.numel() - drawn


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_an_overlay_mixes_the_class_colour_by_its_share_and_leaves_the_clear_class(share: float) -> None:
    image = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(35).view(5, 7) % 3
    drawn = overlay(image, mask, 3, share, clear=1)
    mixed = ((1 - share) * image.float() + share * palette(3)[mask].float()).round().to(torch.uint8)
    assert drawn[mask != 1].equal(mixed[mask != 1])
    assert drawn[mask == 1].equal(image[mask == 1])


def test_neighbouring_colours_of_the_palette_differ_in_hue() -> None:
    colours = palette(20).int()
    assert int((colours[1:] - colours[:-1]).abs().amax(1).min()) > 80
    assert palette(3).equal(palette(20)[:3])  # more classes do not change the colours of the first

"""Frames with masks or depth: the same from parquet and folders, clips that cross no border, and errors that name the file."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.errors import DataError
from tenfold.images.frames import Frames, matching, open_frames
from vision.dense_inputs import npy, png, write

SMALL = png(np.zeros((16, 24, 3), np.uint8))
MASK = png(np.zeros((16, 24), np.uint8))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"mask": [png(np.zeros((8, 8), np.uint8))]}, "row 0: mask has 8 x 8 pixels and its image 16 x 24"),
        ({"label": [b"1"]}, "no column mask"),
        ({"mask": [None]}, "row 0, mask: no bytes"),
        ({"mask": [SMALL]}, "row 0, mask is a PNG of mode RGB"),
        ({"mask": [b"GIF89a"]}, "row 0, mask is not a PNG"),
        ({"mask": [MASK[:50]]}, "row 0, mask"),
        ({"mask": [png(np.full((16, 24), 7, np.uint8))]}, "class id 7; allowed are 0 to 1 and 255"),
    ],
)
def test_a_wrong_mask_is_named_with_its_file_and_field(
    tmp_path: Path, columns: dict[str, list[bytes | None]], said: str
) -> None:
    file = write(tmp_path / "frames.parquet", [SMALL], classes="a,b", **columns)
    with pytest.raises(DataError, match=said) as caught:
        open_frames(file)
    assert "frames.parquet" in str(caught.value)


def test_a_last_class_called_void_is_the_ignored_id(tmp_path: Path) -> None:
    frames = open_frames(write(tmp_path / "f.parquet", [SMALL], mask=[MASK], classes="Road,Sky,Void"))
    assert frames.classes == ("Road", "Sky")
    assert frames.ignored == 2


def test_depth_comes_as_npy_in_metres_and_a_hole_is_zero(tmp_path: Path) -> None:
    values = np.full((16, 24), 2.5)
    values[0, 0] = np.nan
    file = write(tmp_path / "d.parquet", [SMALL], depth=[npy(values)])
    (depth,) = open_frames(file, "depth").depths
    assert depth[0, 0] == 0
    assert depth[1, 1] == 2.5
    bad = write(tmp_path / "e.parquet", [SMALL], depth=[npy(np.zeros((16, 24, 3)))])
    with pytest.raises(DataError, match="row 0, depth is float64 of shape"):
        open_frames(bad, "depth")


def test_a_folder_without_masks_says_which_one_is_missing(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="masks/"):
        open_frames(tmp_path)
    (tmp_path / "masks").mkdir()
    (tmp_path / "images/one.png").write_bytes(SMALL)
    with pytest.raises(DataError, match=r"one\.png has no mask"):
        open_frames(tmp_path)
    (tmp_path / "masks/one.png").write_bytes(MASK)
    assert len(open_frames(tmp_path)) == 1


def named(names: list[str]) -> Frames:
    image, mask = torch.zeros(1, 1, 3, dtype=torch.uint8), torch.zeros(1, 1, dtype=torch.long)
    return Frames("a.parquet", tuple(names), (image,) * len(names), (mask,) * len(names), (), ("a", "b"), 255)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=5), st.integers(2, 4))
def test_clips_are_successive_frames_of_one_film_and_as_many_as_fit(films: list[int], length: int) -> None:
    frames = named([f"film{film}_{i:03d}" for film, count in enumerate(films) for i in range(count)])
    expected = sum(count // length for count in films)
    if not expected:
        with pytest.raises(DataError, match="a clip needs at least 2 frames"):
            frames.clips(length)
        return
    clips = frames.clips(length)
    assert len(clips) == expected
    assert all(len({frames.names[i].rpartition("_")[0] for i in clip}) == 1 and len(clip) == length for clip in clips)
    assert all(first.stop <= second.start for first, second in itertools.pairwise(clips))


def test_a_clip_of_one_frame_is_refused_with_what_the_file_has() -> None:
    with pytest.raises(
        DataError, match=r"a\.parquet: .* 1 were asked for \(--frames\); the file has 3 frames in 2 clips"
    ):
        named(["x_1", "x_2", "y_1"]).clips(1)


def test_a_folder_and_a_parquet_file_give_the_same_frames(tmp_path: Path) -> None:
    images = [png(np.full((4, 6, 3), shade, np.uint8)) for shade in (10, 20)]
    masks = [png(np.full((4, 6), label, np.uint8)) for label in (1, 255)]
    file = write(tmp_path / "f.parquet", images, names=["a_1", "a_2"], mask=masks)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for name, image, mask in zip(("a_1", "a_2"), images, masks):
        (tmp_path / f"images/{name}.png").write_bytes(image)
        (tmp_path / f"masks/{name}.png").write_bytes(mask)
    one, other = open_frames(file), open_frames(tmp_path)
    assert one.names == other.names == ("a_1", "a_2")
    assert one.classes == other.classes == ("0", "1")  # counted without the ignored id
    assert all(a.equal(b) for a, b in zip(one.images + one.masks, other.images + other.masks))
    assert len(open_frames(file, limit=1)) == 1


def test_sets_of_other_classes_do_not_match() -> None:
    frames = named(["x_1"])
    matching(frames, frames)
    for other in (replace(frames, classes=("a", "c")), replace(frames, ignored=2)):
        with pytest.raises(DataError, match=r"are not those of a\.parquet"):
            matching(frames, other)

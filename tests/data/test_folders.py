"""One walk of folders: hidden files stay out, links are followed once, every readable ending is taken, the rest is counted."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tenfold.data.folders import FolderSource, find_images, walk_images
from tenfold.data.readers import FORMATS, SUFFIXES, read_image
from tenfold.errors import DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images at the top, in a class, hidden ones, links to a folder elsewhere and into circles."""
    folder = tmp_path / "photos"
    for name in ("a.JPG", ".hidden.jpg", ".thumbnails/t.jpg", "class/d.jpg", "class/deep/e.png", "../elsewhere/b.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    (folder / "class/labels.csv").write_text("")
    (folder / "class/README").write_text("")
    (folder / "linked").symlink_to("../elsewhere")
    (folder / "class/inner").symlink_to("../../elsewhere")
    (folder / "class/deep/up").symlink_to("../..")
    (folder.parent / "elsewhere/itself").symlink_to(".")
    return folder


def test_every_verb_sees_the_same_files(photos: Path) -> None:
    names = ["a.JPG", "class/d.jpg", "class/deep/e.png", "class/inner/b.jpg", "linked/b.jpg"]
    assert [str(file.relative_to(photos)) for file in find_images((photos,))] == names
    source = FolderSource(photos)
    assert sorted(str(Path(source[i].name).relative_to(photos)) for i in range(len(source))) == names


def test_what_is_skipped_is_counted_by_ending(photos: Path) -> None:
    assert walk_images(photos).skipped == {".txt": 1, ".csv": 1, "": 1}
    notes: list[str] = []
    find_images((photos,), notes)
    assert len(notes) == 1
    assert "1 .txt" in notes[0]
    assert "1 without an ending" in notes[0]


def test_a_folder_of_other_files_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_text("")
    with pytest.raises(DataError, match=r"no images in .*: 1 \.pdf"):
        find_images((tmp_path,))
    with pytest.raises(DataError, match=r"holds no images .*: 1 \.pdf"):
        FolderSource(tmp_path)


def test_two_names_that_differ_by_case_are_two_images(tmp_path: Path) -> None:
    for name in ("a.png", "A.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert len(FolderSource(tmp_path)) == len(find_images((tmp_path,))) == 2


def test_every_ending_of_a_format_that_is_read_is_taken() -> None:
    Image.init()
    known = {ending for ending, kind in Image.EXTENSION.items() if kind in FORMATS}
    assert known - {".pfm", ".avifs"} == set(SUFFIXES)  # floating-point pixels are refused, AVIF sequences not tried


@pytest.mark.parametrize("ending", [".jpe", ".jfif", ".mpo", ".apng", ".avif", ".jp2", ".j2k", ".ppm", ".pgm", ".pnm"])
def test_the_endings_are_those_of_files_that_can_be_read(ending: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(buffer, Image.EXTENSION[ending])
    assert abs(int(read_image(buffer.getvalue()).mean()) - 90) < 4

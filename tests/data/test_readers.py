"""Reading from paths and from memory; what is made to harm is in tests/reliability."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tenfold.data.archives import read_zip
from tenfold.data.readers import read_bytes, read_image, read_json, read_npy
from tenfold.errors import DataError


def test_a_path_and_its_bytes_give_the_same_pixels_as_pillow(tmp_path: Path, test_data: Path) -> None:
    source = sorted((test_data / "faces/facealign").glob("*.*g"))[0]
    expected = np.array(Image.open(source).convert("RGB"))
    assert np.array_equal(read_image(source), expected)
    assert np.array_equal(read_image(str(source)), expected)
    pixels = read_image(source.read_bytes(), "row 3")
    assert np.array_equal(pixels, expected)
    assert pixels.flags["C_CONTIGUOUS"]
    assert pixels.flags["WRITEABLE"]


def test_an_error_names_what_was_read() -> None:
    with pytest.raises(DataError, match="row 3"):
        read_image(b"not an image", "row 3")
    with pytest.raises(DataError, match="settings"):
        read_json(b"{", "settings")


def test_a_limit_on_pixels_or_bytes_can_be_lowered(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "PNG")
    assert read_image(buffer.getvalue(), max_pixels=600).shape == (20, 30, 3)
    with pytest.raises(DataError, match="30 x 20 pixels; allowed are 599"):
        read_image(buffer.getvalue(), max_pixels=599)
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", 5) == b"12345"
    with pytest.raises(DataError, match="has 5 bytes; allowed are 4"):
        read_bytes(tmp_path / "a", 4)


def test_json_values_come_back(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"names": ["a", "b"], "n": 1.5}')
    assert read_json(tmp_path / "a.json") == {"names": ["a", "b"], "n": 1.5}


def test_arrays_come_out_of_files_and_out_of_zips(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    np.savez_compressed(tmp_path / "a.npz", disparity=values, other=values)
    members = read_zip(tmp_path / "a.npz", ["disparity.npy"])
    assert np.array_equal(read_npy(members["disparity.npy"]), values)
    with pytest.raises(DataError, match=r"no member absent\.npy"):
        read_zip(tmp_path / "a.npz", ["absent.npy"])

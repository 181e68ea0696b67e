"""Bounded readers give the same values from paths and from memory; arrays and JSON made to harm are refused in under 2 s,
in little memory. Images made to harm are in tests/reliability/test_images.py."""

from __future__ import annotations

import io
import os
import pickle
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from needed import package
from refusals import refused
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


class _Runs:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_in_an_array_does_not_run(tmp_path: Path) -> None:
    objects = np.empty(1, object)
    objects[0] = _Runs(tmp_path / "ran")
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(_Runs(tmp_path / "ran")))
    for name in ("a.npy", "b.npy"):
        with refused(DataError, name):
            read_npy(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("shape", [(10**12,), (2**62, 4), (3,)])
def test_an_array_header_that_promises_other_bytes_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    (tmp_path / "a.npy").write_bytes(buffer.getvalue() + b"\0" * 64)
    with refused(DataError, r"a\.npy is torn"):
        read_npy(tmp_path / "a.npy")
    np.save(tmp_path / "good.npy", np.arange(6).reshape(2, 3))
    assert read_npy(tmp_path / "good.npy").tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b"[" * 500 + b"]" * 500, "nested too deeply"),
        (b"[" + b"[]," * 2_000_000 + b"1]", "allowed are"),
        (b"1" * 100_000, "not JSON"),
        (b'{"a": ', "not JSON"),
        (b"\xff\xfe\xfa", "not JSON"),
    ],
    ids=["open brackets", "deep", "wide", "digits", "cut", "bytes"],
)
def test_a_json_bomb_is_refused(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with refused(DataError, rf"a\.json.*{why}"):
        read_json(tmp_path / "a.json")


def test_the_largest_json_allowed_stays_within_the_memory_allowed() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(read_json(b"[" + b"[]," * 690_000 + b"1]")) == 690_001
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_a_tiff_whose_white_is_zero_is_not_read_as_its_negative(bits: int) -> None:
    """Pillow turns 1 and 8 bits over and leaves 16 as they are stored."""
    stored = {
        1: bytes([0xF0] * 8),
        8: bytes([255] * 4 + [0] * 4) * 8,
        16: struct.pack("<8H", *[65_535] * 4, *[0] * 4) * 8,
    }[bits]
    for photometric, left in ((0, 0), (1, 255)):
        tags = [(256, 8), (257, 8), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 8)]
        entries = [*((tag, 3, value) for tag, value in tags), (279, 4, len(stored))]
        data = b"II*\0" + struct.pack("<I", 8 + len(stored)) + stored + struct.pack("<H", len(entries))
        for tag, kind, value in entries:
            data += struct.pack("<HHI", tag, kind, 1) + struct.pack(
                "<HH" if kind == 3 else "<I", *(value, 0)[: 5 - kind]
            )
        image = read_image(data + struct.pack("<I", 0))
        assert (image[:, :4] == left).all()
        assert (image[:, 4:] == 255 - left).all()


def test_a_jpeg_2000_of_16_bits_a_colour_is_refused_because_its_white_would_be_black() -> None:
    cv2 = package("cv2")
    white = np.full((32, 32, 3), 65_535, np.uint16)
    with pytest.raises(DataError, match=r"16 bits a colour.* Allowed are 8 bits, or 16 bits of grey"):
        read_image(cv2.imencode(".jp2", white)[1].tobytes())
    for pixels in (white[..., 0], (white >> 8).astype(np.uint8)):
        assert read_image(cv2.imencode(".jp2", pixels)[1].tobytes()).min() >= 254

"""GGUF files that we build byte by byte are read as they are meant, and none that lies is read at all."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tenfold
from gguf_files import llama, write
from tenfold.errors import WeightsError
from tenfold.export.gguf import open_gguf
from tenfold.language.models.llama import Llama


def test_quantised_tensors_are_what_gguf_makes_of_them(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", llama(), quantised=True)
    file, theirs = open_gguf(path), gguf.GGUFReader(path)
    assert set(file.stored) == {t.name for t in theirs.tensors}
    for t in theirs.tensors:
        assert file.format_of(t.name) == t.tensor_type.name
        assert np.array_equal(file.tensor(t.name).numpy(), gguf.dequantize(t.data, t.tensor_type))
    assert file.blocks("blk.0.attn_q.weight").shape == (64, 64 // 32 * 20)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("gguf") / "m.gguf", llama()).read_bytes()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_cut_file_is_refused(whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("cut") / "m.gguf"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 64))])
    with pytest.raises(WeightsError):
        tenfold.load(path)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_flipped_header_bytes_give_a_typed_error_or_a_model(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, 3000))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("flip") / "m.gguf"
    path.write_bytes(damaged)
    with contextlib.suppress(WeightsError):
        assert isinstance(tenfold.load(path), Llama)


@pytest.mark.parametrize("claimed", [2**63, 2**40, 200_000])
def test_a_header_that_claims_the_moon_is_refused_at_once(claimed: int, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, claimed, claimed) + b"\0" * 64)
    with pytest.raises(WeightsError, match=r"claims|cut"):
        open_gguf(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 8, claimed))
    with pytest.raises(WeightsError, match="cut"):
        open_gguf(path)


def test_what_is_not_gguf_says_so(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"PK\3\4" + b"\0" * 100)
    with pytest.raises(WeightsError, match="not a GGUF file"):
        open_gguf(path)
    path.write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
    with pytest.raises(WeightsError, match="known are 2 and 3, little-endian"):
        open_gguf(path)

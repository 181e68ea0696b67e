"""GGUF files that we build byte by byte are read as they are meant, and none that lies is read at all."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tenfold
from gguf_files import write
from tenfold.errors import UsageError, WeightsError
from tenfold.export.gguf import open_gguf
from tenfold.export.weights import convert
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.gguf_weights import gguf_rows, open_llama
from tenfold.language.models.llama import Llama

CONFIG = LlamaConfig(vocabulary=40, dim=64, hidden=96, depth=2, heads=4, kv_heads=2, norm_eps=1e-6, rope_theta=5e4)


def llama(**options: Any) -> Llama:
    torch.manual_seed(0)
    return Llama(LlamaConfig(**{**CONFIG.__dict__, **options})).eval()


@pytest.mark.parametrize("tied", [False, True])
def test_what_llama_cpp_would_write_loads_bit_for_bit(tied: bool, tmp_path: Path) -> None:
    model = llama(tied=tied)
    again = tenfold.load(write(tmp_path / "m.gguf", model))
    assert isinstance(again, Llama)
    assert again.config == model.config
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_the_permutation_is_that_of_interleaved_pairs() -> None:
    order = gguf_rows(heads=2, width=6)
    assert order.tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_quantised_tensors_are_what_gguf_makes_of_them(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", llama(), quantised=True)
    file, theirs = open_gguf(path), gguf.GGUFReader(path)
    assert set(file.stored) == {t.name for t in theirs.tensors}
    for t in theirs.tensors:
        assert file.format_of(t.name) == t.tensor_type.name
        assert np.array_equal(file.tensor(t.name).numpy(), gguf.dequantize(t.data, t.tensor_type))
    assert file.blocks("blk.0.attn_q.weight").shape == (64, 64 // 32 * 20)


@pytest.mark.parametrize("quantised", [False, True])
def test_one_parameter_at_a_time_is_the_same_as_all_at_once(quantised: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", llama(), quantised=quantised)
    held, whole = open_llama(path), tenfold.load(path).state_dict()
    assert list(held) == list(whole)
    for name, tensor in whole.items():
        assert torch.equal(held[name], tensor)
        assert torch.equal(held.read(name, torch.bfloat16), tensor.bfloat16())
    other = tmp_path / "other.gguf"
    other.write_bytes(path.read_bytes().replace(b"llama", b"gemma"))
    with pytest.raises(WeightsError, match="architecture 'gemma'; only llama is read"):
        open_llama(other)


def test_gguf_is_read_and_not_written(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", llama())
    convert(path, tmp_path / "hf", to="hf")
    assert isinstance(tenfold.load(tmp_path / "hf"), Llama)
    with pytest.raises(UsageError, match="read, not written"):
        convert(path, tmp_path / "again.gguf", to="gguf")


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

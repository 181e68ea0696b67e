"""GGUF weights of a Llama: what llama.cpp writes loads bit for bit, one parameter at a time, and a lying file is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tenfold
from gguf_files import llama, write
from tenfold.errors import UsageError, WeightsError
from tenfold.export.weights import convert
from tenfold.language.models.gguf_weights import gguf_config, gguf_rows, open_llama, parameter
from tenfold.language.models.llama import Llama


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6))
def test_rows_are_a_permutation_within_each_head(heads: int, half: int) -> None:
    width = 2 * half
    order = gguf_rows(heads, width)
    for head, rows in enumerate(order.split(width)):
        assert sorted(rows.tolist()) == list(range(head * width, (head + 1) * width))
        pairs = rows.view(2, half)
        assert torch.equal(
            pairs[1] - pairs[0], torch.ones(half, dtype=torch.int64)
        )  # partners stand side by side there


FIELDS: dict[str, Any] = {
    "tokenizer.ggml.tokens": ["a", "b"],
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.block_count": 2,
    "llama.attention.head_count": 4,
    "llama.context_length": 128,
    "llama.attention.layer_norm_rms_epsilon": 9.99999974e-06,
}


def test_fields_of_a_file_are_the_configuration_and_eps_loses_what_fp32_added() -> None:
    config = gguf_config(FIELDS, True, Path("m.gguf"))
    assert (config.vocabulary, config.kv_heads, config.norm_eps, config.tied) == (2, 4, 1e-5, True)
    stretched = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert gguf_config({**FIELDS, **stretched}, True, Path("m.gguf")).rope_scaling.factor == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "'yarn' is not known in GGUF; known are none, linear"),
        ({"llama.attention.head_count_kv": 3}, r"cannot be used \(model.kv_heads = 3"),
        ({"llama.block_count": "two"}, "llama.block_count"),
    ],
)
def test_a_field_that_is_no_plain_llama_s_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        gguf_config({**FIELDS, **changes}, True, Path("m.gguf"))


def test_a_parameter_comes_in_any_number_format_from_any_weights(tmp_path: Path) -> None:
    model = llama()
    held = open_llama(write(tmp_path / "m.gguf", model))
    for name, tensor in model.state_dict().items():
        assert torch.equal(parameter(held, name, torch.bfloat16), tensor.bfloat16())
        assert torch.equal(parameter(model.state_dict(), name, torch.bfloat16), tensor.bfloat16())
        assert set(held.formats(name).values()) == {"F32"}


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

"""Packed activations of a model are its masked hidden units, number for number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from language.engine_models import tiny_llama
from tenfold.errors import UsageError
from tenfold.language.models.packed_activations import KEY, figures, pack_layers, save
from tenfold.nn.pack24 import unpack24

TOKENS = torch.arange(40).view(2, 20) % 23


def test_only_the_layers_named_are_packed_and_16_bits_are_exact(tmp_path: Path) -> None:
    model = tiny_llama(activation="relu2")
    packed = pack_layers(model, TOKENS, "sm80", ["blocks.1.ffn"])
    assert list(packed) == ["blocks.1.ffn"]
    one, exact = packed["blocks.1.ffn"]
    assert one.shape == (40, 24)
    assert (exact != 0).any()
    assert torch.equal(unpack24(one), exact)
    assert figures(one, exact)["largest error"] == 0
    save(tmp_path / "p.safetensors", {"blocks.1.ffn": one})
    with safe_open(tmp_path / "p.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["blocks.1.ffn.meta", "blocks.1.ffn.values"]
        assert json.loads(file.metadata()[KEY]) == {"blocks.1.ffn": {"layout": "sm80", "shape": [40, 24]}}


def test_fp8_rounds_and_says_by_how_much() -> None:
    one, exact = pack_layers(tiny_llama(activation="relu2"), TOKENS, "sm90_fp8", ["blocks.0.ffn"])["blocks.0.ffn"]
    assert 0 < figures(one, exact)["largest error"] < 0.05


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(UsageError, match="sm80"):
        pack_layers(tiny_llama(activation="relu2"), TOKENS, "sm8", ["blocks.0.ffn"])

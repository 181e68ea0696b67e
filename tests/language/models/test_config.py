"""Configuration of a Llama: sizes and kinds of network that cannot be are refused by the name of their field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.config import FieldError, from_dict, to_dict
from tenfold.language.models.config import LlamaConfig

MEMORY = {"memory_layers": (1, 3), "memory_side": 8, "memory_top_k": 4, "memory_key_dim": 8}


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        ({"depth": 0}, "model.depth", "a whole number >= 1"),
        ({"heads": 32, "kv_heads": 5}, "model.kv_heads", "a divisor of heads = 32"),
        ({"dim": 100}, "model.heads", "a divisor of dim"),
        ({"head_dim": 7}, "model.head_dim", "an even number"),
        ({"rope_theta": 0.0}, "model.rope_theta", "a number > 0"),
        ({"sparsity": "2:4"}, "model.sparsity", "activation relu2"),
        ({"sparsity": "2:4", "activation": "relu2", "experts": 2}, "model.sparsity", "experts"),
        ({"experts": 4}, "model.experts", "activation relu2"),
        ({"experts": 4, "activation": "relu2", "ffn_bias": True}, "model.experts", "without biases"),
        ({"experts": 4, "activation": "relu2", "experts_top_k": 5}, "model.experts_top_k", "1 to experts = 4"),
        ({**MEMORY, "memory_layers": (1, 1)}, "model.memory_layers", "different blocks from 0 to 31"),
        ({**MEMORY, "memory_layers": (32,)}, "model.memory_layers", "different blocks from 0 to 31"),
        ({**MEMORY, "memory_top_k": 9}, "model.memory_top_k", "1 to memory_side = 8"),
        ({**MEMORY, "memory_key_dim": 5}, "model.memory_key_dim", "an even number"),
    ],
    ids=str,
)
def test_what_cannot_be_names_its_field_and_what_is_allowed(changes: dict[str, Any], name: str, message: str) -> None:
    with pytest.raises(FieldError, match=message) as error:
        LlamaConfig(**changes)
    assert error.value.name == name


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 8), st.booleans())
def test_heads_that_divide_are_allowed_and_come_back_from_json(groups: int, each: int, half: int, given: bool) -> None:
    heads, width = groups * each, 2 * half
    config = LlamaConfig(dim=heads * width, heads=heads, kv_heads=groups, head_dim=width if given else None)
    assert config.width == width
    assert from_dict(LlamaConfig, to_dict(config)) == config


def test_memory_sizes_are_free_where_there_is_no_memory_layer() -> None:
    assert LlamaConfig(memory_top_k=999).memory_top_k == 999

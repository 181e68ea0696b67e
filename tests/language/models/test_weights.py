"""Llama weights in Hugging Face's layout: both ways bit for bit, and a config.json that means another model is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tenfold
from language.engine_models import tiny_llama
from tenfold.errors import WeightsError
from tenfold.export.weights import Weights
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.llama import Llama
from tenfold.language.models.weights import links, write
from tenfold.nn.rope import RopeScaling

VARIANTS: list[dict[str, Any]] = [
    {},
    {"tied": True, "head_dim": 6},
    {"attention_bias": True, "ffn_bias": True},
    {"rope_scaling": RopeScaling("linear", 4.0)},
    {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 64), "rope_theta": 5e5},
]


def folder(path: Path, **changes: Any) -> tuple[Llama, Path]:
    model = tiny_llama(**changes)
    write(Weights(model.config, model.state_dict()), path / "hf")
    return model, path / "hf"


def edited(path: Path, **changes: Any) -> Path:
    values = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return path


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_there_and_back_keeps_every_bit_and_the_configuration(tmp_path: Path, variant: dict[str, Any]) -> None:
    model, path = folder(tmp_path, **variant)
    again = tenfold.load(path)
    assert isinstance(again, Llama)
    assert again.config == LlamaConfig(**{**vars(model.config), "head_dim": model.config.width})
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "yarn"}, "rope_parameters": None}, "'yarn' is not known; known are default"),
        ({"hidden_size": None}, "its config.json cannot be used"),
        ({"num_key_value_heads": 3}, "its config.json cannot be used"),
        ({"intermediate_size": 25}, "mlp"),
    ],
    ids=str,
)
def test_a_config_that_describes_another_model_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    _, path = folder(tmp_path)
    with pytest.raises(WeightsError, match=message):
        tenfold.load(edited(path, **changes))


def test_an_absent_rope_theta_is_ten_thousand(tmp_path: Path) -> None:
    _, path = folder(tmp_path, rope_theta=77.0)
    again = tenfold.load(edited(path, rope_theta=None, rope_parameters=None))
    assert isinstance(again, Llama)
    assert again.config.rope_theta == 10_000


def test_a_repeated_head_of_a_tied_model_is_taken_when_equal_and_refused_when_not(tmp_path: Path) -> None:
    model, path = folder(tmp_path, tied=True)
    file = path / "model.safetensors"
    tensors = load_file(file)
    embedding = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embedding.clone()}, file)
    assert torch.equal(tenfold.load(path).state_dict()["embedding.weight"], model.embedding.weight)
    save_file(tensors | {"lm_head.weight": embedding + 1}, file)
    with pytest.raises(WeightsError, match=r"lm_head\.weight differs from the embedding"):
        tenfold.load(path)


def test_computed_frequencies_in_old_files_are_left_out(tmp_path: Path) -> None:
    _, path = folder(tmp_path)
    tensors = load_file(path / "model.safetensors")
    save_file(tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}, path / "model.safetensors")
    assert isinstance(tenfold.load(path), Llama)


def test_a_model_that_the_layout_cannot_say_is_refused(tmp_path: Path) -> None:
    model = tiny_llama(activation="relu2")
    with pytest.raises(WeightsError, match="this model has the activation relu2"):
        write(Weights(model.config, model.state_dict()), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_the_parts_of_every_link_fill_our_parameter() -> None:
    config = tiny_llama(attention_bias=True).config
    state = Llama(config).state_dict()
    found = links(config)
    assert {link.own for link in found} == set(state)
    for link in found:
        assert sum(part.shape[0] for part in link.parts) == state[link.own].shape[0]
        assert {part.shape[1:] for part in link.parts} == {tuple(state[link.own].shape[1:])}

"""A GGUF file's RoPE scaling is honoured in every form that llama.cpp writes, and each of its fields has a fate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

import tenfold
from gguf_files import write
from tenfold.errors import WeightsError
from tenfold.export.weights import convert, read
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.gguf_fields import GGUF_FIELDS
from tenfold.language.models.llama import Llama
from tenfold.nn.rope import RopeScaling, scaled_frequencies

CONFIG = LlamaConfig(vocabulary=40, dim=128, hidden=96, depth=2, heads=2, kv_heads=1, rope_theta=5e5)
TOKENS = torch.arange(300)[None] % 40


def llama(scaling: RopeScaling | None = None) -> Llama:
    torch.manual_seed(0)
    model = Llama(LlamaConfig(**{**CONFIG.__dict__, "rope_scaling": scaling or RopeScaling()})).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, 1.0 if p.ndim == 1 else 0.0, 0.2)
    return model


def divisors(scaling: RopeScaling, width: int = 64, theta: float = 5e5) -> np.ndarray:
    plain = scaled_frequencies(width, theta, RopeScaling())
    return (plain / scaled_frequencies(width, theta, scaling)).numpy()


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
        RopeScaling("llama3", 32.0, 1.0, 4.0, 8192),
        RopeScaling("llama3", 32.0, 1.0, 4.0, 512),
        RopeScaling("linear", 4.0),
    ],
)
@torch.inference_mode()
def test_divisors_of_the_frequencies_are_honoured_and_never_lost(scaling: RopeScaling, tmp_path: Path) -> None:
    wanted = llama(scaling)(TOKENS).logits
    file = write(tmp_path / "m.gguf", llama(), divisors=divisors(scaling))
    assert (tenfold.load(file)(TOKENS).logits - wanted).abs().max() < 1e-3
    convert(file, tmp_path / "own.safetensors")
    assert (tenfold.load(tmp_path / "own.safetensors")(TOKENS).logits - wanted).abs().max() < 1e-3
    convert(file, tmp_path / "hf", to="hf")
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "hf").eval()
    assert (theirs(TOKENS).logits - wanted).abs().max() < 1e-3
    assert (llama()(TOKENS).logits - wanted).abs().max() > 0.1  # the scaling is seen at this length


def test_divisors_without_a_frequency_between_the_limits_are_honoured(tmp_path: Path) -> None:
    given = np.array([1.0, 1.0, 8.0, 8.0], np.float32)  # of a narrow head: wavelengths 6, 167, 4443, 118175
    model = Llama(LlamaConfig(vocabulary=40, dim=16, hidden=16, depth=1, heads=2, kv_heads=2, rope_theta=5e5))
    scaling = read(write(tmp_path / "m.gguf", model, divisors=given))[1].config.rope_scaling
    assert np.allclose(divisors(scaling, 8), given)


@pytest.mark.parametrize(
    ("more", "scaling"),
    [
        ({"llama.rope.scaling.factor": 4.0}, RopeScaling("linear", 4.0)),
        ({"llama.rope.scale_linear": 4.0}, RopeScaling("linear", 4.0)),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, RopeScaling("linear", 4.0)),
        ({"llama.rope.scaling.factor": 2.0, "llama.rope.scale_linear": 4.0}, RopeScaling("linear", 2.0)),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, RopeScaling()),
        ({"llama.rope.scaling.factor": 0.0}, RopeScaling()),
    ],
)
def test_fields_of_a_scaling_mean_what_llama_cpp_takes_them_for(
    more: dict[str, Any], scaling: RopeScaling, tmp_path: Path
) -> None:
    assert read(write(tmp_path / "m.gguf", llama(), more=more))[1].config.rope_scaling == scaling


@pytest.mark.parametrize(
    ("more", "given", "words"),
    [
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, None, "'yarn' is not known"),
        ({"llama.rope.scaling.attn_factor": 1.5}, None, "attn_factor = 1.5; allowed is 1.0"),
        ({"llama.rope.scaling.factor": -1.0}, None, "a number above 0"),
        ({"llama.rope.scaling.factor": 4.0}, np.linspace(1, 8, 32), "one of them"),
        ({}, np.linspace(1, 8, 32), "neither all equal nor"),
        ({}, np.ones(16), "has the shape"),
        ({}, np.full(32, np.nan), "all above 0"),
        ({"llama.rope.dimension_count": 32}, None, "one width of a head"),
        ({"llama.attention.key_length": 64, "llama.attention.value_length": 32}, None, "one width of a head"),
        ({"llama.attention.sliding_window": 128}, None, "sliding_window = 128"),
        ({"llama.logit_scale": 8.0}, None, "logit_scale"),
        ({"llama.expert_count": 8}, None, "expert_count"),
        ({"llama.something_new": 1}, None, "something_new"),
        ({"llama.vocab_size": 41}, None, "vocab_size = 41"),
        ({"general.type": "adapter"}, None, "general.type"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    more: dict[str, Any], given: np.ndarray | None, words: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "m.gguf", llama(), more=more, divisors=given)
    with pytest.raises(WeightsError, match=words):
        tenfold.load(file)


def test_fields_of_other_makers_change_nothing(tmp_path: Path) -> None:
    more = {"mradermacher.quantized_by": "x", "general.name": "m", "quantize.imatrix.file": "y", "split.count": 1}
    assert tenfold.load(write(tmp_path / "m.gguf", llama(), more=more)).config == llama().config


def named(group: type) -> list[str]:
    """The keys of a group in the gguf package, for a Llama."""
    return [
        v.replace("{arch}", "llama") for n, v in vars(group).items() if not n.startswith("_") and isinstance(v, str)
    ]


def test_every_key_of_the_gguf_package_has_a_fate() -> None:
    keys = gguf.Keys
    for group in (keys.General, keys.LLM, keys.Attention, keys.Rope, keys.Split, keys.Tokenizer):
        for name in named(group):
            fate = GGUF_FIELDS.fate(name)
            assert fate == "used" or fate.startswith(("ignored: ", "refused"))
    refused = {
        n for n in (*named(keys.LLM), *named(keys.Attention), *named(keys.Rope)) if "ignored" in GGUF_FIELDS.fate(n)
    }
    # Whatever of the network's own fields is ignored belongs to a kind that is refused by another field.
    assert all(n.startswith(("llama.rope.scaling.", "llama.expert_")) for n in refused), refused
    groups = (keys.General, keys.LLM, keys.Attention, keys.Rope, keys.Tokenizer)
    known = {"llama.rope.scale_linear", *(name for group in groups for name in named(group))}
    assert set(GGUF_FIELDS.used) <= known

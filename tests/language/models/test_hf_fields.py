"""Every field of a Llama's config.json is used, ignored for a reason, or refused; its two ways to say RoPE agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig as TheirConfig

import tenfold
from tenfold.data.tensors import save_own
from tenfold.errors import WeightsError
from tenfold.export.weights import convert
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.hf_fields import LLAMA_FIELDS, rope_of
from tenfold.language.models.llama import Llama
from tenfold.nn.rope import RopeScaling

CONFIG = LlamaConfig(vocabulary=40, dim=32, hidden=48, depth=1, heads=2, kv_heads=1)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def folder(path: Path, **changes: Any) -> Path:
    save_own(path / "own.safetensors", Llama(CONFIG).state_dict(), "llama", CONFIG)
    convert(path / "own.safetensors", path / "hf", to="hf")
    config = json.loads((path / "hf/config.json").read_text()) | changes
    (path / "hf/config.json").write_text(json.dumps(config))
    return path / "hf"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'; allowed is 'silu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"sliding_window": 16}, "sliding_window = 16"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier"),
        ({"rope_thetta": 5e5}, "is it rope_theta"),
        ({"rope_theta": 5e5}, "rope_theta 10000.0 and 500000.0"),
        ({"rope_scaling": LLAMA3}, "differ"),
        ({"rope_parameters": {**LLAMA3, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": {**LLAMA3, "beta_fast": 32}}, "beta_fast"),
        ({"rope_parameters": {"factor": 4.0}}, "without a kind"),
        ({"rope_parameters": {"rope_type": "linear"}}, "cannot be used"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' is not known"),
        ({"rope_scaling": "linear"}, "names with values"),
    ],
)
def test_what_would_change_the_model_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=words):
        tenfold.load(folder(tmp_path, **changes))


def test_what_changes_nothing_is_taken(tmp_path: Path) -> None:
    changes = {
        "use_cache": True,
        "attention_dropout": 0.1,
        "pretraining_tp": 2,
        "eos_token_id": [1, 2],
        "mlp_bias": None,
    }
    assert tenfold.load(folder(tmp_path, **changes, transformers_version="4.40")).config == CONFIG.__class__(
        **{**CONFIG.__dict__, "head_dim": 16}
    )


@pytest.mark.parametrize(
    "values",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_scaling": LLAMA3, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
    ],
)
def test_both_ways_to_say_a_scaling_are_read(values: dict[str, Any]) -> None:
    assert rope_of(values, "here") == (5e5, RopeScaling("llama3", 8.0, 1.0, 4.0, 64))


def test_every_field_of_transformers_has_a_fate() -> None:
    fates = {name: LLAMA_FIELDS.fate(name) for name in TheirConfig().to_dict()}
    assert [name for name, fate in fates.items() if fate == "refused"] == []
    ours = {"vocab_size", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "attention_bias", "eos_token_id"}
    assert all(fates[name] == "used" for name in ours)
    LLAMA_FIELDS.check(TheirConfig().to_dict(), "transformers' own")

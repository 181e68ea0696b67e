"""Our Llama gives transformers' logits: grouped queries, tied and untied heads, stretched rotary positions, caching."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tenfold.export.weights import convert, load
from tenfold.language.models.llama import Llama

LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500000.0,
}
CASES: dict[str, dict[str, Any]] = {
    "grouped queries": {"num_key_value_heads": 2},
    "one key head, tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "untied, wide heads": {"head_dim": 32},
    "linear scaling": {"rope_parameters": LINEAR},
    "llama3 scaling": {"num_key_value_heads": 4, "rope_parameters": LLAMA3},
    "biases": {"attention_bias": True, "mlp_bias": True},
}


def pair(options: dict[str, Any], folder: Path) -> tuple[Llama, LlamaForCausalLM]:
    torch.manual_seed(0)
    sizes = {"vocab_size": 211, "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 3}
    theirs = LlamaForCausalLM(
        LlamaConfig(**sizes, num_attention_heads=8, **{"num_key_value_heads": 8, **options})
    ).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, 1.0 if p.ndim == 1 else 0.0, 0.1)
    theirs.save_pretrained(folder / "hf")
    ours = load(folder / "hf")
    assert isinstance(ours, Llama)
    return ours, theirs


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@torch.inference_mode()
def test_logits_equal_transformers_whole_and_cached(options: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = pair(options, tmp_path)
    tokens = torch.randint(0, 211, (2, 150))
    whole = ours(tokens).logits
    assert whole.std() > 0.3
    assert (whole - theirs(tokens).logits).abs().max() <= 1e-4
    cache = ours.new_cache(batch=2, capacity=16)  # smaller than the text: it has to grow
    steps = [ours(part, cache=cache).logits for part in tokens.split([100, 1, 1, 7, 41], dim=1)]
    assert (torch.cat(steps, dim=1) - whole).abs().max() <= 1e-4
    cache.truncate(100)
    assert (ours(tokens[:, 100:101], cache=cache).logits - whole[:, 100:101]).abs().max() <= 1e-4


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_what_we_write_transformers_reads_with_the_same_bits(options: dict[str, Any], tmp_path: Path) -> None:
    _, theirs = pair(options, tmp_path)
    convert(tmp_path / "hf", tmp_path / "own.safetensors")
    convert(tmp_path / "own.safetensors", tmp_path / "again", to="hf")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "again").eval()
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in theirs.state_dict().items())
    tokens = torch.arange(80)[None]
    with torch.inference_mode():
        assert torch.equal(again(tokens).logits, theirs(tokens).logits)

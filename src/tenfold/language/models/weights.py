"""Llama weights: the Hugging Face layout both ways, bit for bit.

    model = tenfold.load("SmolLM2-135M/")          model.safetensors (or shards) + config.json
    tenfold convert OWN.safetensors FOLDER --to hf

Sizes are read from config.json, because the tensors alone do not tell heads, RoPE base or scaling; the tensors are then
checked against it. An absent `rope_theta` means 10,000, as in the released code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.data.tensors import write_safetensors
from tenfold.errors import TenfoldError, WeightsError
from tenfold.export.keymap import Link, Part, read_links, write_links
from tenfold.export.reading import Source
from tenfold.export.weights import Layout, Weights
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.hf_fields import LLAMA_FIELDS, rope_of
from tenfold.language.models.llama import Llama
from tenfold.nn.outline import outline

_BLOCK = "model.layers.{}."
_STEMS = {
    "norm1": ("input_layernorm",),
    "norm2": ("post_attention_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.o_proj",),
    "ffn.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "ffn.down": ("mlp.down_proj",),
}
_OUTSIDE = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}


def recognises(source: Source) -> bool:
    llama = any(name.endswith(".self_attn.q_proj.weight") for name in source.tensors)
    return llama and source.config.get("model_type", "llama") == "llama"


def read(source: Source) -> Weights:
    config = config_of(source)
    tensors = dict(source.tensors)
    for name in [n for n in tensors if n.endswith(".rotary_emb.inv_freq")]:  # stored by old versions, always computed
        del tensors[name]
    # A file may repeat the embedding as the head of a tied model; another head would be lost without a word.
    head = tensors.pop("lm_head.weight", None) if config.tied else None
    if head is not None and not torch.equal(head, tensors.get("model.embed_tokens.weight", torch.empty(0))):
        raise WeightsError(f"{source.path}: config.json says tied, but lm_head.weight differs from the embedding.")
    return Weights(config, read_links(links(config), tensors, source.path))


def write(weights: Weights, path: Path) -> None:
    c = weights.config
    if c.memory_layers or c.activation != "swiglu":
        kind = "memory layers" if c.memory_layers else f"the activation {c.activation}"
        raise WeightsError(f"the layout 'hf' is a plain Llama's; this model has {kind}. Allowed: own, or memory.")
    path.mkdir()
    write_safetensors(path / "model.safetensors", write_links(links(weights.config), weights.state))
    (path / "config.json").write_text(json.dumps(hf_config(weights.config, weights.state), indent=2) + "\n")


def links(
    config: LlamaConfig,
    block: str = _BLOCK,
    stems: dict[str, tuple[str, ...]] = _STEMS,
    outside: dict[str, str] = _OUTSIDE,
) -> list[Link]:
    with outline():
        shapes = {name: tuple(t.shape) for name, t in Llama(config).state_dict().items()}
    heads, groups = config.heads * config.width, config.kv_heads * config.width
    rows = {"attention.qkv": (heads, groups, groups), "ffn.gate_up": (config.hidden, config.hidden)}
    result = []
    for own, shape in shapes.items():
        if not own.startswith("blocks."):
            stem, _, leaf = own.rpartition(".")
            result.append(Link(own, shape, Part(f"{outside[stem]}.{leaf}", shape)))
            continue
        _, number, rest = own.split(".", 2)
        stem, _, leaf = rest.rpartition(".")
        sizes = rows.get(stem, (shape[0],))
        names = [f"{block.format(number)}{name}.{leaf}" for name in stems[stem]]
        result.append(Link(own, shape, *(Part(n, (size, *shape[1:])) for n, size in zip(names, sizes, strict=True))))
    return result


def config_of(source: Source) -> LlamaConfig:
    """Raises WeightsError when config.json is absent or describes something that this model is not."""
    values = source.config
    if not values:
        raise WeightsError(
            f"{source.path}: Llama weights need the config.json that belongs to them, in the same folder."
        )
    LLAMA_FIELDS.check(values, source.path)
    theta, scaling = rope_of(values, source.path)
    try:
        return LlamaConfig(
            vocabulary=values["vocab_size"],
            dim=values["hidden_size"],
            hidden=values["intermediate_size"],
            depth=values["num_hidden_layers"],
            heads=values["num_attention_heads"],
            kv_heads=values.get("num_key_value_heads") or values["num_attention_heads"],
            head_dim=values.get("head_dim"),
            norm_eps=values.get("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            context=values.get("max_position_embeddings", 2048),
            tied=values.get("tie_word_embeddings") or False,
            attention_bias=values.get("attention_bias") or False,
            ffn_bias=values.get("mlp_bias") or False,
        )
    except (KeyError, TypeError, ValueError, TenfoldError) as error:
        raise WeightsError(f"{source.path}: its config.json cannot be used ({error!s}).") from error


def hf_config(config: LlamaConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """config.json as transformers reads it, old versions and new."""
    scaling = config.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default" if scaling.kind == "none" else scaling.kind}
    if scaling.kind != "none":
        rope["factor"] = scaling.factor
    if scaling.kind == "llama3":
        rope |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_length,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocabulary,
        "hidden_size": config.dim,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling.kind == "none" else rope,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
        "max_position_embeddings": config.context,
        "tie_word_embeddings": config.tied,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.ffn_bias,
        "dtype": str(state["embedding.weight"].dtype).removeprefix("torch."),
    }


LAYOUT = Layout("hf", recognises, read, write)

"""Weights of the released memory layers (arXiv 2412.09764), both ways, bit for bit.

    tenfold convert runs/lm-memory-plus FOLDER --to memory            model.safetensors + config.json
    model = tenfold.load(FOLDER)

No public weights exist in it, so this is tested on generated checkpoints alone. Names are those of a Llama of Meta's
(`layers.0.attention.wq.weight`, rotary pairs side by side), with a memory under `layers.I.feed_forward`. The table stands
there once; a sharded checkpoint repeats it under every memory layer, and then all must be equal.
"""

from __future__ import annotations

import dataclasses
import json
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
from tenfold.language.models.gguf_weights import gguf_rows
from tenfold.language.models.llama import Llama
from tenfold.language.models.weights import links
from tenfold.nn.outline import outline

_BLOCK = "layers.{}."
_STEMS = {
    "norm1": ("attention_norm",),
    "norm2": ("ffn_norm",),
    "attention.qkv": ("attention.wq", "attention.wk", "attention.wv"),
    "attention.out": ("attention.wo",),
    "ffn.gate_up": ("feed_forward.w1", "feed_forward.w3"),
    "ffn.down": ("feed_forward.w2",),
}
_OUTSIDE = {"embedding": "tok_embeddings", "norm": "norm", "head": "output"}
_MEMORY = {"query": "query_proj.query_mlps.0", "out": "value_proj", "gate_in": "swilu_projection"}
_TABLES = {"memory.values": "values", "memory.down": "values_u", "memory.up": "values_v"}


def recognises(source: Source) -> bool:
    return any(name.endswith(".feed_forward.keys") for name in source.tensors)


def read(source: Source) -> Weights:
    tensors = dict(source.tensors)
    config = _config_of(source)
    _drop_repeated_tables(config, tensors, source.path)
    _reorder(config, tensors, inverse=False)
    return Weights(config, read_links(memory_links(config), tensors, source.path))


def write(held: Weights, path: Path) -> None:
    config = held.config
    if not config.memory_layers or config.activation != "swiglu" or config.qk_norm != "none":
        raise WeightsError(
            f"the layout 'memory' holds models with memory layers, SwiGLU and qk_norm none; this one has "
            f"{len(config.memory_layers)} memory layers, {config.activation} and qk_norm {config.qk_norm}. Allowed: own."
        )
    if config.rope_scaling.kind != "none":
        kind = config.rope_scaling.kind
        raise WeightsError(f"the layout 'memory' has no place for the RoPE scaling {kind}. Allowed: own.")
    tensors = write_links(memory_links(config), held.state)
    _reorder(config, tensors, inverse=True)
    path.mkdir()
    write_safetensors(path / "model.safetensors", tensors)
    (path / "config.json").write_text(json.dumps(_described(config), indent=2) + "\n")


def memory_links(config: LlamaConfig) -> list[Link]:
    """The key map; the table stands under the first memory layer."""
    c = config
    with outline():
        shapes = {name: tuple(t.shape) for name, t in Llama(c).state_dict().items()}
    plain = links(dataclasses.replace(c, memory_layers=()), _BLOCK, _STEMS, _OUTSIDE)
    table = [link for link in plain if link.own in shapes]
    under = f"{_BLOCK.format(min(c.memory_layers))}feed_forward."
    table += [Link(own, shapes[own], Part(f"{under}{_TABLES[own]}.weight", shapes[own])) for own in _tables(c)]
    for i in c.memory_layers:
        own, theirs = f"blocks.{i}.ffn.", f"{_BLOCK.format(i)}feed_forward."
        flat = (2 * c.memory_heads * c.memory_side, c.memory_key_dim // 2)
        table.append(Link(f"{own}keys", shapes[f"{own}keys"], Part(f"{theirs}keys", flat)))
        for stem, name in _MEMORY.items():
            for leaf in ("weight", "bias"):
                if f"{own}{stem}.{leaf}" in shapes:
                    shape = shapes[f"{own}{stem}.{leaf}"]
                    table.append(Link(f"{own}{stem}.{leaf}", shape, Part(f"{theirs}{name}.{leaf}", shape)))
    return table


def _tables(config: LlamaConfig) -> list[str]:
    return ["memory.down", "memory.up"] if config.memory_variant == "peer" else ["memory.values"]


def _drop_repeated_tables(config: LlamaConfig, tensors: dict[str, Tensor], path: Path) -> None:
    for own in _tables(config):
        names = [f"{_BLOCK.format(i)}feed_forward.{_TABLES[own]}.weight" for i in sorted(config.memory_layers)]
        found = [name for name in names if name in tensors]
        for name in found[1:]:
            if not torch.equal(tensors[name], tensors[found[0]]):
                raise WeightsError(f"{path}: {name} differs from {found[0]}; the memory layers share one table.")
        if found:
            kept = tensors[found[0]]
            for name in found:
                del tensors[name]
            tensors[names[0]] = kept


def _reorder(config: LlamaConfig, tensors: dict[str, Tensor], inverse: bool) -> None:
    """Rows of q and k: their rotary pairs stand side by side, ours half a head apart."""
    for i in range(config.depth):
        for name, heads in (("wq", config.heads), ("wk", config.kv_heads)):
            key = f"{_BLOCK.format(i)}attention.{name}.weight"
            rows = gguf_rows(heads, config.width)
            if key in tensors and len(tensors[key]) == len(rows):
                tensors[key] = tensors[key][rows.argsort() if inverse else rows]


def _described(config: LlamaConfig) -> dict[str, Any]:
    c = config
    return {
        "dim": c.dim,
        "n_layers": c.depth,
        "n_heads": c.heads,
        "n_kv_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "hidden_dim": c.hidden,
        "vocab_size": c.vocabulary,
        "norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "max_seqlen": c.context,
        "weight_tying": c.tied,
        "productkey_args": {
            "layers": ",".join(map(str, c.memory_layers)),
            "mem_n_keys": c.memory_side,
            "mem_heads": c.memory_heads,
            "mem_knn": c.memory_top_k,
            "mem_k_dim": c.memory_key_dim,
            "swilu_projection": c.memory_variant == "plus",
            "peer_variant": c.memory_variant == "peer",
        },
    }


def _config_of(source: Source) -> LlamaConfig:
    """Raises WeightsError without the config.json, which alone tells heads and hits."""
    values = source.config
    if not values:
        raise WeightsError(f"{source.path}: weights with memory layers need their config.json, in the same folder.")
    try:
        memory = values["productkey_args"]
        plus, peer = memory.get("swilu_projection", False), memory.get("peer_variant", False)
        return LlamaConfig(
            vocabulary=values["vocab_size"],
            dim=values["dim"],
            hidden=values["hidden_dim"],
            depth=values["n_layers"],
            heads=values["n_heads"],
            kv_heads=values.get("n_kv_heads") or values["n_heads"],
            head_dim=values.get("head_dim"),
            norm_eps=values.get("norm_eps", 1e-5),
            rope_theta=float(values.get("rope_theta", 10000.0)),
            context=values.get("max_seqlen", 4096),
            tied=values.get("weight_tying", False),
            memory_layers=tuple(int(i) for i in str(memory["layers"]).split(",")),
            memory_side=memory["mem_n_keys"],
            memory_heads=memory["mem_heads"],
            memory_top_k=memory["mem_knn"],
            memory_key_dim=memory["mem_k_dim"],
            memory_variant="peer" if peer else "plus" if plus else "pkm",
            qk_norm="none",
        )
    except (KeyError, TypeError, ValueError, AttributeError, TenfoldError) as error:
        raise WeightsError(f"{source.path}: its config.json cannot be used ({error!s}).") from error


LAYOUT = Layout("memory", recognises, read, write)

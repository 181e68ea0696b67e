"""Small GGUF files for tests: a Llama with a byte-level tokenizer, as llama.cpp writes one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers
import torch

from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.gguf_weights import GGUF_OUTSIDE, GGUF_STEMS, gguf_rows
from tenfold.language.models.llama import Llama
from tenfold.language.models.tokenizer import Tokenizer, from_gguf
from tenfold.language.models.weights import links

BYTES = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def fields(**changes: object) -> dict[str, object]:
    words = ["<end>", *BYTES, "ab"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [3, *[1] * (len(words) - 1)],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.chat_template": "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}",
        **changes,
    }


def bytes_tokenizer(**changes: object) -> Tokenizer:
    return from_gguf(fields(**changes), Path("m.gguf"))


def write(
    path: Path,
    model: Llama,
    quantised: bool = False,
    tokenizer: dict[str, Any] | None = None,
    more: dict[str, Any] | None = None,
    divisors: np.ndarray | None = None,
) -> Path:
    """A GGUF file as llama.cpp writes one: q and k with interleaved pairs. `tokenizer` are fields of one that works, `more`
    are further fields, `divisors` are those of the rotary frequencies."""
    c = model.config
    out = gguf.GGUFWriter(path, "llama")
    out.add_block_count(c.depth)
    out.add_context_length(c.context)
    out.add_embedding_length(c.dim)
    out.add_feed_forward_length(c.hidden)
    out.add_head_count(c.heads)
    out.add_head_count_kv(c.kv_heads)
    out.add_layer_norm_rms_eps(c.norm_eps)
    out.add_rope_freq_base(c.rope_theta)
    t = {
        "tokens": [f"t{i}" for i in range(c.vocabulary)],
        **{k.split(".")[-1]: v for k, v in (tokenizer or {}).items()},
    }
    out.add_tokenizer_model("gpt2")
    out.add_token_list(t["tokens"])
    if tokenizer:
        out.add_tokenizer_pre(t["pre"])
        out.add_token_types(t["token_type"])
        out.add_token_merges(t["merges"])
        out.add_eos_token_id(t["eos_token_id"])
        out.add_chat_template(t["chat_template"])
    for name, value in (more or {}).items():
        kind = gguf.GGUFValueType.UINT32 if type(value) is int else gguf.GGUFValueType.get_type(value)
        out.add_key_value(name, value, kind)
    if divisors is not None:
        out.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
    state = model.state_dict()
    for link in links(c, "blk.{}.", GGUF_STEMS, GGUF_OUTSIDE):
        pieces = state[link.own].split([part.shape[0] for part in link.parts])
        for part, piece in zip(link.parts, pieces):
            heads = {"attn_q": c.heads, "attn_k": c.kv_heads}.get(part.name.split(".")[-2])
            if heads:
                order = gguf_rows(heads, c.width)
                piece = torch.empty_like(piece).index_copy_(0, order, piece)
            array = piece.detach().numpy().astype(np.float32)
            if quantised and array.ndim == 2:
                kind = gguf.GGMLQuantizationType.Q4_1
                out.add_tensor(part.name, gguf.quants.quantize(array, kind), raw_dtype=kind)
            else:
                out.add_tensor(part.name, array)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


CONFIG = LlamaConfig(vocabulary=40, dim=64, hidden=96, depth=2, heads=4, kv_heads=2, norm_eps=1e-6, rope_theta=5e4)


def llama(**options: Any) -> Llama:
    torch.manual_seed(0)
    return Llama(LlamaConfig(**{**CONFIG.__dict__, **options})).eval()

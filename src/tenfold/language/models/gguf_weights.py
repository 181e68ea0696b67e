"""GGUF weights of a Llama, one parameter at a time: a prepared model is never in memory beside the whole of its file.

    held = open_llama(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))            a mapping: our names -> fp32 tensors
    held["blocks.0.attention.qkv.weight"]                                 read, dequantised and joined now
    held.blocks("blocks.0.attention.qkv.weight")                          the same rows as they are stored
    tenfold.load("SmolLM2-135M-Instruct.Q4_1.gguf")                       all of it, in fp32

GGUF puts the rotary pairs of q and k in another order; rows are taken in ours, quantised or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tenfold.errors import UsageError, WeightsError
from tenfold.export.gguf import GGUFFile, field, open_gguf
from tenfold.export.keymap import check_names
from tenfold.export.reading import Source
from tenfold.export.weights import Layout, Weights
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.gguf_fields import ROPE_FREQS, check_model_fields, gguf_scaling
from tenfold.language.models.weights import links

# GGUF's names of our Linear maps.
GGUF_STEMS = {
    "norm1": ("attn_norm",),
    "norm2": ("ffn_norm",),
    "attention.qkv": ("attn_q", "attn_k", "attn_v"),
    "attention.out": ("attn_output",),
    "ffn.gate_up": ("ffn_gate", "ffn_up"),
    "ffn.down": ("ffn_down",),
}
GGUF_OUTSIDE = {"embedding": "token_embd", "norm": "output_norm", "head": "output"}


class GGUFLlama(Mapping[str, Tensor]):
    """Raises WeightsError for a file whose fields and tensors do not describe one plain Llama."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        divisors = file.tensor(ROPE_FREQS) if ROPE_FREQS in file.stored else None
        self.config = config = gguf_config(file.metadata, "output.weight" not in file.stored, file.path, divisors)
        _check_claims(config, file)
        self._links = {link.own: link for link in links(config, "blk.{}.", GGUF_STEMS, GGUF_OUTSIDE)}
        expected = {part.name: part.shape for link in self._links.values() for part in link.parts}
        # The divisors of the rotary frequencies are in the configuration now.
        check_names(expected, {n: t for n, t in file.outline().items() if n != ROPE_FREQS}, file.path)

    def __getitem__(self, own: str) -> Tensor:
        return self.read(own)

    def __iter__(self) -> Iterator[str]:
        return iter(self._links)

    def __len__(self) -> int:
        return len(self._links)

    def read(self, own: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A parameter by our name."""
        parts = [self._ordered(name, self.file.tensor(name, dtype)) for name in self._names(own)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def formats(self, own: str) -> dict[str, str]:
        """The formats of what a parameter is made of, by GGUF's names."""
        return {name: self.file.format_of(name) for name in self._names(own)}

    def blocks(self, own: str) -> UInt8[Tensor, "rows row_bytes"]:
        """A linear map's rows as they are stored; its parts must have one format."""
        return torch.cat([self._ordered(name, self.file.blocks(name)) for name in self._names(own)])

    def _names(self, own: str) -> list[str]:
        return [part.name for part in self._links[own].parts]

    def _ordered(self, name: str, rows: Tensor) -> Tensor:
        heads = {"attn_q": self.config.heads, "attn_k": self.config.kv_heads}.get(name.split(".")[-2])
        return rows[gguf_rows(heads, self.config.width)] if heads else rows


def open_llama(path: Path) -> GGUFLlama:
    """Raises WeightsError for a file that is damaged, or is not a Llama."""
    file = open_gguf(path)
    kind = file.metadata.get("general.architecture")
    if kind != "llama":
        raise WeightsError(f"{path}: a GGUF file of the architecture {kind!r}; only llama is read.")
    return GGUFLlama(file)


def parameter(state: Mapping[str, Any], own: str, dtype: torch.dtype) -> Tensor:
    """A parameter of any weights in a number format; from a GGUF file without the detour of all of it in fp32."""
    return state.read(own, dtype) if isinstance(state, GGUFLlama) else state[own].to(dtype)


def recognises_gguf(source: Source) -> bool:
    return source.gguf.get("general.architecture") == "llama"


def read_gguf(source: Source) -> Weights:
    assert isinstance(source.tensors, GGUFFile)
    held = GGUFLlama(source.tensors)
    return Weights(held.config, dict(held))


def _check_claims(config: LlamaConfig, file: GGUFFile) -> None:
    """Before a model of the claimed size is laid out."""
    rows, groups = config.heads * config.width, config.kv_heads * config.width
    claimed = {
        "token_embd": (config.vocabulary, config.dim),
        f"blk.{config.depth - 1}.ffn_down": (config.dim, config.hidden),
        f"blk.{config.depth - 1}.attn_q": (rows, config.dim),
        f"blk.{config.depth - 1}.attn_k": (groups, config.dim),
    }
    for name, shape in claimed.items():
        found = file.stored.get(f"{name}.weight")
        if found is None or found.shape != shape:
            has = "no such tensor" if found is None else f"it is {found.shape}"
            raise WeightsError(f"{file.path}: its fields say that {name}.weight is {shape}; {has}.")


def gguf_rows(heads: int, width: int) -> Tensor:
    """Where our row i of q or k stands in GGUF, which puts the two halves of a head's rotary pairs side by side."""
    return torch.arange(heads * width).view(heads, width // 2, 2).transpose(1, 2).flatten()


def gguf_config(
    values: dict[str, Any], tied: bool, path: Path, divisors: Float[Tensor, " f"] | None = None
) -> LlamaConfig:
    """Raises WeightsError for a field that is missing or says that this is not a plain Llama. divisors: of the rotary
    frequencies (`rope_freqs.weight`)."""
    where = f"{path}"
    check_model_fields(values, path)
    heads = field(values, "llama.attention.head_count", int, where)
    width = _head_width(values, heads, path)
    vocabulary = len(field(values, "tokenizer.ggml.tokens", list, where))
    if values.get("llama.vocab_size", vocabulary) != vocabulary:
        raise WeightsError(f"{path}: llama.vocab_size = {values['llama.vocab_size']}, but it has {vocabulary} tokens.")
    theta = float(values.get("llama.rope.freq_base", 10000.0))
    dim = field(values, "llama.embedding_length", int, where)
    if theta <= 0 or heads < 1:  # refused below, by its name
        divisors = None
    # The exporter rounds to fp32: 1e-5 comes back as 9.99999974e-06.
    eps = float(f"{field(values, 'llama.attention.layer_norm_rms_epsilon', float, where):.6g}")
    try:
        return LlamaConfig(
            vocabulary=vocabulary,
            dim=dim,
            hidden=field(values, "llama.feed_forward_length", int, where),
            depth=field(values, "llama.block_count", int, where),
            heads=heads,
            kv_heads=values.get("llama.attention.head_count_kv", heads),
            head_dim=width,
            norm_eps=eps,
            rope_theta=theta,
            rope_scaling=gguf_scaling(values, divisors, theta, width or dim // max(1, heads), path),
            context=field(values, "llama.context_length", int, where),
            tied=tied,
        )
    except (UsageError, TypeError) as error:  # a list where the layers differ
        raise WeightsError(f"{path}: its fields cannot be used ({error}).") from error


def _head_width(values: dict[str, Any], heads: int, path: Path) -> int | None:
    """None is the embedding's width shared among the heads. Raises WeightsError where keys, values and rotation differ."""
    names = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    said = {f"llama.{name}": values[f"llama.{name}"] for name in names if values.get(f"llama.{name}")}
    if not said.keys() - {"llama.rope.dimension_count"} and said and heads:
        said["llama.embedding_length / head_count"] = field(values, "llama.embedding_length", int, f"{path}") // heads
    if len(set(said.values())) > 1:
        words = ", ".join(f"{name} = {value}" for name, value in said.items())
        raise WeightsError(f"{path}: keys, values and rotation must have one width of a head; it has {words}.")
    return next(iter(said.values()), None)


def no_gguf(weights: Weights, path: Path) -> None:
    raise UsageError("GGUF is read, not written. Allowed: own, hf.")


LAYOUT = Layout("gguf", recognises_gguf, read_gguf, no_gguf)

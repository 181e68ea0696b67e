"""GGUF metadata of a Llama: what becomes of every field, and the RoPE scaling that its fields and tensors describe.

    GGUF_FIELDS.fate("llama.rope.scaling.factor")              "used"
    scaling = gguf_scaling(file.metadata, factors, theta, width, path)

llama.cpp's converter writes the scaling of Llama 3.1 to 3.3 as a tensor, `rope_freqs.weight`, with one divisor for each
frequency and no field. The divisors are turned back into the four numbers that made them, so that every other layout can hold
them; divisors that no such numbers make are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tenfold.errors import WeightsError
from tenfold.export.fields import Fields
from tenfold.nn.rope import RopeScaling, scaled_frequencies

ROPE_FREQS = "rope_freqs.weight"
LOW, HIGH = 1.0, 4.0  # of every released Llama; others stretch the original length by the same amount
_CLOSE = 1e-4  # relative: the divisors are stored in fp32, and the length that made them is a whole number
_MADE = "says how the file was made or what it is called, not what it computes"
_BPE = "belongs to other kinds of vocabulary than byte-level BPE"
_FIM = "a word for filling in the middle, which is not offered"

GGUF_FIELDS = Fields(
    used=(
        "general.architecture",
        "general.alignment",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.block_count",
        "llama.attention.head_count",
        "llama.attention.head_count_kv",
        "llama.attention.key_length",
        "llama.attention.value_length",
        "llama.attention.layer_norm_rms_epsilon",
        "llama.rope.dimension_count",
        "llama.rope.freq_base",
        "llama.rope.scale_linear",
        "llama.rope.scaling.type",
        "llama.rope.scaling.factor",
        "llama.vocab_size",
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.eom_token_id",
        "tokenizer.ggml.add_bos_token",
        "tokenizer.chat_template",
    ),
    only={
        "general.type": ("model",),
        "llama.attention.causal": (True,),
        "llama.attention.clamp_kqv": (0.0,),
        "llama.attention.max_alibi_bias": (0.0,),
        "llama.attention.scale": (0.0,),  # llama.cpp takes 0 for the usual one
        "llama.attention.sliding_window": (0,),
        "llama.embedding_scale": (0.0, 1.0),
        "llama.residual_scale": (0.0, 1.0),
        "llama.logit_scale": (0.0, 1.0),
        "llama.expert_count": (0,),
        "llama.expert_used_count": (0,),
        "llama.pooling_type": (0,),
        "llama.rope.scaling.attn_factor": (1.0,),
        "llama.tensor_data_layout": ("Meta AI original pth",),  # interleaved rotary pairs, as all these files have
        "llama.use_parallel_residual": (False,),
        "split.count": (0, 1),
        "tokenizer.ggml.add_eos_token": (False,),  # llama.cpp would end every prompt with it
    },
    ignored={
        "general.*": _MADE,
        "quantize.*": _MADE,
        "split.*": "the parts of one file; a file of several is refused by split.count",
        "llama.rope.scaling.original_context_length": "read by llama.cpp for the kind yarn alone, which is refused",
        "llama.rope.scaling.finetuned": "says how the model was trained",
        "llama.rope.scaling.yarn_*": "read by llama.cpp for the kind yarn alone, which is refused",
        "llama.expert_*": "describe experts, of which there are none (expert_count)",
        "tokenizer.ggml.scores": "belong to SentencePiece; byte-level BPE merges by the order of its merges",
        "tokenizer.ggml.token_type_count": "belongs to encoders with several segments",
        "tokenizer.ggml.unknown_token_id": "bytes have no unknown text",
        "tokenizer.ggml.padding_token_id": "nothing is padded",
        "tokenizer.ggml.seperator_token_id": "belongs to encoders",
        "tokenizer.ggml.separator_token_id": "belongs to encoders",
        "tokenizer.ggml.cls_token_id": "belongs to encoders",
        "tokenizer.ggml.mask_token_id": "belongs to encoders",
        "tokenizer.ggml.add_sep_token": "belongs to encoders",
        "tokenizer.ggml.add_space_prefix": _BPE,
        "tokenizer.ggml.remove_extra_whitespaces": _BPE,
        "tokenizer.ggml.precompiled_charsmap": _BPE,
        "tokenizer.ggml.fim_*": _FIM,
        "tokenizer.ggml.prefix_token_id": _FIM,
        "tokenizer.ggml.suffix_token_id": _FIM,
        "tokenizer.ggml.middle_token_id": _FIM,
        "tokenizer.huggingface.json": "the same vocabulary once more, in another form",
        "tokenizer.chat_templates": "names of further templates; the one that has no name is used",
        "tokenizer.chat_template.*": "further templates by name; the one that has no name is used",
    },
)
# Where a reader looks for what a model is; other makers' own fields say who made a file.
_READ = ("general.", "llama.", "split.", "tokenizer.", "quantize.", "adapter.", "clip.")


def check_fields(metadata: Mapping[str, Any], parts: tuple[str, ...], path: Path) -> None:
    """Raises WeightsError for fields that begin with one of `parts` and cannot be honoured."""
    GGUF_FIELDS.check({name: value for name, value in metadata.items() if name.startswith(parts)}, path)


def check_model_fields(metadata: Mapping[str, Any], path: Path) -> None:
    """All but the vocabulary's, which is read apart from the weights (models/tokenizer.py)."""
    check_fields(metadata, tuple(part for part in _READ if part != "tokenizer."), path)


def gguf_scaling(
    metadata: Mapping[str, Any], divisors: Float[Tensor, " f"] | None, theta: float, width: int, path: Path
) -> RopeScaling:
    """The scaling as llama.cpp understands the fields (without a type, a factor is linear) and the tensor of divisors."""
    factor = metadata.get("llama.rope.scaling.factor")
    if factor is None:
        factor = metadata.get("llama.rope.scale_linear")  # the older name
    factor = float(factor or 1.0)  # llama.cpp takes 0 for 1
    kind = metadata.get("llama.rope.scaling.type") or "linear"
    if kind not in ("none", "linear"):
        raise WeightsError(f"{path}: RoPE scaling {kind!r} is not known in GGUF; known are none, linear.")
    if not math.isfinite(factor) or factor <= 0:
        raise WeightsError(f"{path}: a RoPE scaling by {factor}; allowed is a number above 0.")
    scaling = RopeScaling("linear", factor) if kind == "linear" and factor != 1 else RopeScaling()
    if divisors is None:
        return scaling
    if divisors.shape != (width // 2,) or not bool((divisors.isfinite() & (divisors > 0)).all()):
        raise WeightsError(
            f"{path}: {ROPE_FREQS} has the shape {tuple(divisors.shape)} and must be {(width // 2,)}, all above 0."
        )
    if torch.equal(divisors, torch.ones_like(divisors)):
        return scaling
    if scaling.kind != "none":
        raise WeightsError(
            f"{path}: it has both {ROPE_FREQS} and a linear scaling by {factor}; one of them can be honoured."
        )
    return scaling_of_divisors(divisors, theta, width, path)


def scaling_of_divisors(divisors: Float[Tensor, " f"], theta: float, width: int, path: Path) -> RopeScaling:
    """The scaling whose frequencies are the plain ones divided by these. Raises WeightsError where there is none."""
    plain = scaled_frequencies(width, theta, RopeScaling())
    factor = float(f"{float(divisors.max()):.7g}")
    if bool((divisors == divisors[0]).all()):
        return RopeScaling("linear", factor)
    wavelengths = (2 * math.pi / plain).double()
    kept = (1 / divisors.double() - 1 / factor) / (1 - 1 / factor)  # the share of a frequency that stays as it is
    between = (kept > 1e-4) & (kept < 1 - 1e-4)
    if bool(between.any()):
        lengths = wavelengths[between] * (kept[between] * (HIGH - LOW) + LOW)
        candidates = [int(lengths.median().round())]
    else:  # no frequency lies between the two limits, so that any length which splits them there makes the same ones
        longest_kept = float(wavelengths[kept >= 0.5].max()) if bool((kept >= 0.5).any()) else 0.0
        shortest = float(wavelengths[kept < 0.5].min())
        powers = [1 << n for n in range(1, 31)]
        candidates = [n for n in powers if longest_kept * HIGH <= n <= shortest * LOW]
    for length in candidates:
        scaling = RopeScaling("llama3", factor, LOW, HIGH, length)
        found = plain / scaled_frequencies(width, theta, scaling)
        if bool(((found - divisors).abs() <= _CLOSE * divisors).all()):
            return scaling
    raise WeightsError(
        f"{path}: the divisors of {ROPE_FREQS} are neither all equal nor those of Llama 3.1's scaling, and no other kind is "
        "known here. Convert the model from its Hugging Face folder."
    )

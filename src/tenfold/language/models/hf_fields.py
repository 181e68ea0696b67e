"""Fields of a Llama's config.json in a Hugging Face folder: what becomes of each, and its rotary positions (RoPE).

LLAMA_FIELDS.check(config, folder)                         raises WeightsError for what cannot be honoured
theta, scaling = rope_of(config, folder)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tenfold.errors import TenfoldError, WeightsError
from tenfold.export.fields import GENERAL_IGNORED, GENERAL_ONLY, Fields
from tenfold.nn.rope import RopeScaling

LLAMA_FIELDS = Fields(
    used=(
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "max_position_embeddings",
        "tie_word_embeddings",
        "attention_bias",
        "mlp_bias",
        "eos_token_id",
    ),
    only={
        **GENERAL_ONLY,
        "hidden_act": ("silu", "swish"),
        "rope_interleaved": (False,),
        "partial_rotary_factor": (1.0,),
        "sliding_window": (),
        "use_sliding_window": (False,),
        "no_rope_layers": ([],),
    },
    ignored={
        **GENERAL_IGNORED,
        "bos_token_id": "the vocabulary's files say it",
        "pretraining_tp": "another order of the same sums",
    },
)

# Inside `rope_scaling` or `rope_parameters`, by kind.
_LINEAR = ("type", "rope_type", "rope_theta", "factor")
_LLAMA3 = (*_LINEAR, "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_WHOLE: dict[str, tuple[Any, ...]] = {"partial_rotary_factor": (1.0,), "attention_factor": (1.0,)}
_LENGTH = {"original_max_position_embeddings": "the factor alone decides a linear scaling"}
ROPE_FIELDS = {
    "default": Fields(_LINEAR, _LENGTH, {**_WHOLE, "factor": (1.0,)}),
    "linear": Fields(_LINEAR, _LENGTH, _WHOLE),
    "llama3": Fields(_LLAMA3, {}, _WHOLE),
}


def rope_of(values: Mapping[str, Any], where: object) -> tuple[float, RopeScaling]:
    """Base and scaling, from the words of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`). Raises
    WeightsError where the two differ, since versions of transformers read either, and for a kind that is not known."""
    found = {}
    for name in ("rope_parameters", "rope_scaling"):
        said = values.get(name)
        if said:
            if not isinstance(said, dict):
                raise WeightsError(f"{where}: {name} = {said!r} of its config.json; allowed are names with values.")
            found[name] = _scaling(said, where)
    if len(set(found.values())) > 1:
        raise WeightsError(
            f"{where}: rope_scaling and rope_parameters of its config.json differ; versions of transformers read one or the "
            "other. Keep the one that the model was trained with."
        )
    inner = {name: values[name].get("rope_theta") for name in found}
    bases = {float(base) for base in (values.get("rope_theta"), *inner.values()) if base}
    if len(bases) > 1:
        raise WeightsError(
            f"{where}: its config.json has the rope_theta {' and '.join(map(str, sorted(bases)))}; versions of transformers "
            "read one or the other. Keep the one that the model was trained with."
        )
    return next(iter(bases), 10000.0), next(iter(found.values()), RopeScaling())


def _scaling(rope: Mapping[str, Any], where: object) -> RopeScaling:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ROPE_FIELDS:
        raise WeightsError(f"{where}: RoPE scaling {kind!r} is not known; known are {', '.join(ROPE_FIELDS)}.")
    if kind == "default" and rope.get("factor", 1.0) not in (1.0, None):
        raise WeightsError(
            f"{where}: a RoPE factor of {rope['factor']} without a kind; give rope_type linear or llama3."
        )
    ROPE_FIELDS[kind].check(rope, where)
    try:
        if kind == "linear":
            return RopeScaling("linear", float(rope["factor"]))
        if kind == "llama3":
            return RopeScaling(
                "llama3",
                float(rope["factor"]),
                float(rope["low_freq_factor"]),
                float(rope["high_freq_factor"]),
                int(rope["original_max_position_embeddings"]),
            )
    except (KeyError, TypeError, ValueError, TenfoldError) as error:
        raise WeightsError(f"{where}: its RoPE scaling cannot be used ({error!s}).") from error
    return RopeScaling()

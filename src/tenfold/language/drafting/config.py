"""config.json of a drafter in three layouts: the same words with different meanings.

    EAGLE        architectures LlamaForCausalLM; `bias` of EAGLE-1's fc is true when absent
    SGLang       LlamaForCausalLMEagle3 (SpecForge writes it too); feature layers counted by their *outputs*
    speculators  Eagle3Speculator with a nested transformer_layer_config; feature layers counted by their *inputs*

`rope_theta` absent is 10,000 everywhere, never the target's. `max_position_embeddings` bounds nothing: RoPE has no end.
`norm_output` is "feed the normed state back" to SGLang and speculators (default false) and "norm before the head" to
SpecForge (default true), so in a SGLang-layout file that does not say who wrote it, it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from tenfold.errors import TenfoldError, WeightsError
from tenfold.export.reading import Source
from tenfold.language.drafting.drafter import DrafterConfig
from tenfold.nn.rope import RopeScaling

LayoutName = Literal["sglang", "speculators", "eagle"]
ARCHITECTURES: dict[LayoutName, str] = {
    "sglang": "LlamaForCausalLMEagle3",
    "speculators": "Eagle3Speculator",
    "eagle": "LlamaForCausalLM",
}
OUTPUTS, INPUTS = "outputs", "inputs"  # what a list of feature layers counts
COUNTS: dict[LayoutName, str] = {"sglang": OUTPUTS, "speculators": INPUTS}
AUX_KEY = "eagle_aux_hidden_state_layer_ids"
MARK = "tenfold"  # in a config.json of ours: the meanings are as this file says


def layout_of(values: Mapping[str, Any]) -> LayoutName:
    """Which layout a config.json is of."""
    if "transformer_layer_config" in values or values.get("speculators_model_type"):
        return "speculators"
    named = (values.get("architectures") or [""])[0]
    return "sglang" if named == ARCHITECTURES["sglang"] else "eagle"


def read_config(source: Source, tensors: Mapping[str, Tensor]) -> DrafterConfig:
    """Raises WeightsError when config.json is absent, wrong, or means two things (then `source.hints` decides)."""
    values = source.config
    if not values:
        raise WeightsError(f"{source.path}: a drafter needs the config.json that belongs to it, in the same folder.")
    layout = layout_of(values)
    inner: Mapping[str, Any] = values.get("transformer_layer_config") or values
    method = "eagle3" if "lm_head.weight" in tensors or "layers.0.hidden_norm.weight" in tensors else "eagle1"
    try:
        dim, vocabulary = inner["hidden_size"], inner["vocab_size"]
        wide = values.get("target_hidden_size") or inner.get("target_hidden_size")
        common: dict[str, Any] = {
            "method": method,
            "vocabulary": vocabulary,
            "draft_vocabulary": vocabulary,
            "dim": dim,
            "hidden": inner["intermediate_size"],
            "layers": inner.get("num_hidden_layers", 1),
            "heads": inner["num_attention_heads"],
            "kv_heads": inner.get("num_key_value_heads") or inner["num_attention_heads"],
            "head_dim": inner.get("head_dim"),
            "target_dim": None if wide in (None, dim) else wide,
            "norm_eps": inner.get("rms_norm_eps", 1e-6),
            "attention_bias": inner.get("attention_bias", False),
            "own_embedding": "embed_tokens.weight" in tensors,
            "sliding_window": inner.get("sliding_window") if inner.get("use_sliding_window", True) else None,
            "target": (values.get(MARK) or {}).get("target", ""),
        }
        common |= _rope(inner)
        if method == "eagle1":
            return DrafterConfig(**common, fc_bias=inner.get("bias", True))
        count = tensors["fc.weight"].shape[1] // (wide or dim)
        return DrafterConfig(
            **(common | {"draft_vocabulary": values.get("draft_vocab_size") or vocabulary}),
            aux_layers=_aux_layers(source, values, inner, layout),
            aux_count=count,
            norm_before_fc="input_norm.weight" in tensors,
            fc_norm="fc_norm.0.weight" in tensors,
            norm_output=_norm_output(source, values, layout),
            norm_before_residual=values.get("norm_before_residual", False),
        )
    except WeightsError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, TenfoldError) as error:
        raise WeightsError(f"{source.path}: its config.json cannot be used ({error!s}).") from error


def _rope(inner: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inner.get("rope_parameters") or {}
    scaling = inner.get("rope_scaling") or parameters
    theta = inner.get("rope_theta") or parameters.get("rope_theta") or 10000.0
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return {"rope_theta": float(theta)}
    if kind == "linear":
        return {"rope_theta": float(theta), "rope_scaling": RopeScaling("linear", float(scaling["factor"]))}
    if kind != "llama3":
        raise WeightsError(f"RoPE scaling {kind!r} is not known; known are default, linear, llama3.")
    stretched = RopeScaling(
        "llama3",
        float(scaling["factor"]),
        float(scaling["low_freq_factor"]),
        float(scaling["high_freq_factor"]),
        int(scaling["original_max_position_embeddings"]),
    )
    return {"rope_theta": float(theta), "rope_scaling": stretched}


def _aux_layers(
    source: Source, values: Mapping[str, Any], inner: Mapping[str, Any], layout: LayoutName
) -> tuple[int, ...]:
    """Feature layers by their inputs; empty where the file leaves them to the default of its target."""
    if "aux_layers" in source.hints:
        return tuple(source.hints["aux_layers"])
    nested = values.get("eagle_config") or {}
    listed = values.get(AUX_KEY) or nested.get(AUX_KEY) or inner.get(AUX_KEY)
    if not listed:
        return ()
    if layout not in COUNTS:
        raise WeightsError(
            f"{source.path}: {AUX_KEY} = {listed} may count layers by inputs or by outputs, and this layout does not say. "
            f"Say which inputs are read: --aux-layers {' '.join(map(str, listed))} (or each plus 1)."
        )
    return tuple(i + (COUNTS[layout] == OUTPUTS) for i in listed)


def _norm_output(source: Source, values: Mapping[str, Any], layout: LayoutName) -> bool:
    if "norm_output" in source.hints:
        return bool(source.hints["norm_output"])
    if "norm_output" not in values or layout == "eagle":
        return False
    if layout == "sglang" and MARK not in values:
        raise WeightsError(
            f"{source.path}: norm_output = {values['norm_output']} means one thing to SGLang (feed the normed state back) "
            "and another to SpecForge (norm before the head). Say the first: --norm-output True or --norm-output False."
        )
    return bool(values["norm_output"])


def write_config(config: DrafterConfig, layout: LayoutName, state: Mapping[str, Tensor], where: Path) -> dict[str, Any]:
    """config.json as that layout's engines read it. Raises WeightsError for what the layout cannot say."""
    c = config
    _refuse_unsayable(c, layout, where)
    dtype = str(next(t for n, t in state.items() if n != "ids").dtype).removeprefix("torch.")
    rope: dict[str, Any] | None = None
    if c.rope_scaling.kind != "none":
        s = c.rope_scaling
        rope = {"rope_type": s.kind, "factor": s.factor}
        if s.kind == "llama3":
            rope |= {
                "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_length,
            }
    inner: dict[str, Any] = {
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": c.dim,
        "intermediate_size": c.hidden,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.width,
        "vocab_size": c.vocabulary,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": rope,
        "max_position_embeddings": 131072,
        "attention_bias": c.attention_bias,
        "tie_word_embeddings": False,
        "sliding_window": c.sliding_window,
    }
    mark = {MARK: {"target": c.target}}
    wide = {} if c.target_dim is None else {"target_hidden_size": c.target_dim}
    if c.method == "eagle1":
        return {
            "architectures": [ARCHITECTURES["eagle"]],
            **inner,
            **wide,
            "bias": c.fc_bias,
            "torch_dtype": dtype,
            **mark,
        }
    switches = {"norm_before_residual": c.norm_before_residual, "norm_output": c.norm_output}
    if layout == "speculators":
        return {
            "architectures": [ARCHITECTURES["speculators"]],
            "speculators_model_type": "eagle3",
            "speculators_config": {
                "algorithm": "eagle3",
                "default_proposal_method": "greedy",
                "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 4}],
                "verifier": {"name_or_path": None, "architectures": ["LlamaForCausalLM"]},
            },
            "transformer_layer_config": inner,
            "draft_vocab_size": c.draft_vocabulary,
            AUX_KEY: list(c.aux_layers) or None,
            **({"target_hidden_size": c.target_dim} if c.target_dim else {}),
            "norm_before_fc": c.norm_before_fc,
            "fc_norm": c.fc_norm,
            **switches,
            "torch_dtype": dtype,
            **mark,
        }
    aux = {} if layout == "eagle" or not c.aux_layers else {AUX_KEY: [i - 1 for i in c.aux_layers]}
    return {
        "architectures": [ARCHITECTURES[layout]],
        **inner,
        **wide,
        "draft_vocab_size": c.draft_vocabulary,
        **({"eagle_config": {"use_aux_hidden_state": True, **aux}} if layout == "sglang" else {}),
        **({} if layout == "eagle" else switches),
        "torch_dtype": dtype,
        **mark,
    }


def _refuse_unsayable(c: DrafterConfig, layout: LayoutName, where: Path) -> None:
    """The engines of these layouts would compute something else, without a word."""
    if c.method == "eagle1":
        if layout != "eagle":
            raise WeightsError(f"{where}: an EAGLE-1 drafter has the layout eagle only.")
        return
    if layout != "eagle" and not c.aux_layers:
        raise WeightsError(
            f"{where}: the drafter does not say which layers of the target it reads, and {layout} has to know. "
            "Give the inputs that it reads: --aux-layers 2 16 29"
        )
    if layout == "sglang" and any(i < 1 for i in c.aux_layers):
        raise WeightsError(
            f"{where}: aux_layers {list(c.aux_layers)}: the input of layer 0 is not the output of a layer."
        )
    unsaid = {
        "norm_output": c.norm_output and layout == "eagle",
        "norm_before_residual": c.norm_before_residual and layout == "eagle",
        "norm_before_fc": c.norm_before_fc and layout != "speculators",
        "fc_norm": c.fc_norm and layout == "eagle",
    }
    if any(unsaid.values()):
        words = ", ".join(name for name, is_set in unsaid.items() if is_set)
        raise WeightsError(f"{where}: the layout {layout} has no {words}; the result would compute something else.")

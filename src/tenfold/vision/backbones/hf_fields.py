"""Fields of config.json beside DINOv2 and DINOv3 weights in a Hugging Face folder: what becomes of each.

check_config(source, "gelu", VIT_FIELDS)         raises WeightsError for what cannot be honoured, an activation too
theta = rope_theta(source)                       the base of DINOv3's rotary periods, which such a folder does not store
"""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from tenfold.errors import WeightsError
from tenfold.export.fields import GENERAL_IGNORED, GENERAL_ONLY, Fields
from tenfold.export.reading import Source
from tenfold.nn.rope import AxialRope

RELEASED_THETA = 100.0
_SHAPES = "the tensors' names and shapes say it"
_START = "the value before training; the trained one is a tensor"
_INPUT = "images of any size are taken"
_TRAINING = "acts in training alone"
_IGNORED = {
    **GENERAL_IGNORED,
    "image_size": _INPUT,
    "num_channels": _SHAPES,
    "layerscale_value": _START,
    "layer_scale_init_value": _START,
    "apply_layernorm": "of transformers' feature maps; features here are after the norm unless asked for otherwise",
}

VIT_FIELDS = Fields(
    used=(
        "model_type",
        "num_attention_heads",
        "hidden_act",
        "layer_norm_eps",
        "rope_theta",
        "pos_embed_rescale",
    ),
    only=GENERAL_ONLY,
    ignored={
        **_IGNORED,
        **dict.fromkeys(
            (
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "mlp_ratio",
                "patch_size",
                "num_register_tokens",
                "use_gated_mlp",
                "use_swiglu_ffn",
                "query_bias",
                "key_bias",
                "value_bias",
                "proj_bias",
                "qkv_bias",
                "mlp_bias",
                "use_mask_token",
            ),
            _SHAPES,
        ),
        "pos_embed_shift": _TRAINING,
        "pos_embed_jitter": _TRAINING,
    },
)
CONVNEXT_FIELDS = Fields(
    used=("model_type", "hidden_act", "layer_norm_eps"),
    only=GENERAL_ONLY,
    ignored={**_IGNORED, "hidden_sizes": _SHAPES, "depths": _SHAPES},
)


def check_config(source: Source, activation: str | None, fields: Fields) -> None:
    """Raises WeightsError for a field that is not honoured. activation: what the network computes, by transformers' name;
    None where transformers does not look at the field."""
    if not source.config:
        return
    fields.check(source.config, f"{source.path}: config.json")
    said = source.config.get("hidden_act") or "gelu"  # transformers' default in each of these models
    if activation is not None and said != activation:
        raise WeightsError(
            f"{source.path}: config.json says hidden_act = {said!r}; allowed with these tensors is {activation!r}."
        )


def rope_theta(source: Source) -> float:
    """Raises WeightsError for a base that is none."""
    theta = source.config.get("rope_theta") or RELEASED_THETA
    if not isinstance(theta, (int, float)) or not theta > 0:
        raise WeightsError(f"{source.path}: config.json says rope_theta = {theta!r}; allowed is a number above 0.")
    return float(theta)


def theta_of(periods: Float[Tensor, " p"], path: Path) -> float:
    """The base of these periods, which may be rounded to bf16. Raises WeightsError for periods that no base has."""
    head_dim, rounding = 4 * len(periods), 2.0**-8
    periods = periods.detach().float().cpu()

    def has(base: float) -> bool:
        exact = AxialRope.exact(head_dim, base)
        return bool(((periods / exact - 1).abs() <= rounding).all())

    if has(RELEASED_THETA):
        return RELEASED_THETA
    count = len(periods)
    found = float(f"{float(periods[-1]) ** (count / (count - 1)):.6g}") if count > 1 else RELEASED_THETA
    if not has(found):
        raise WeightsError(f"{path}: the rotary periods of this model come from no rope_theta. Use --to own.")
    return found

"""The configuration files that transformers and timm expect beside the weights of a vision backbone.

    for name, content in hf_files(config).items(): write_json(folder / name, content)

With them `transformers.AutoModel.from_pretrained(folder)` and timm's `create_model("local-dir:" + folder)` load the model.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tenfold.errors import WeightsError
from tenfold.vision.backbones.backbone import BackboneConfig
from tenfold.vision.backbones.convnext import CONVNEXT_CONFIGS, ConvNextConfig
from tenfold.vision.backbones.vit import VIT_CONFIGS, VitConfig

# Our released sizes under timm's names; other sizes get no architecture name, and timm cannot build them.
TIMM_NAMES = {
    "dinov2-s": "vit_small_patch14_dinov2",
    "dinov2-b": "vit_base_patch14_dinov2",
    "dinov2-l": "vit_large_patch14_dinov2",
    "dinov2-g": "vit_giant_patch14_dinov2",
    "dinov2-s-reg": "vit_small_patch14_reg4_dinov2",
    "dinov2-b-reg": "vit_base_patch14_reg4_dinov2",
    "dinov2-l-reg": "vit_large_patch14_reg4_dinov2",
    "dinov2-g-reg": "vit_giant_patch14_reg4_dinov2",
    "dinov3-s": "vit_small_patch16_dinov3_qkvb",
    "dinov3-s+": "vit_small_plus_patch16_dinov3_qkvb",
    "dinov3-b": "vit_base_patch16_dinov3_qkvb",
    "dinov3-l": "vit_large_patch16_dinov3_qkvb",
    "dinov3-h+": "vit_huge_plus_patch16_dinov3_qkvb",
    "dinov3-7b": "vit_7b_patch16_dinov3",
    "dinov3-convnext-t": "convnext_tiny",
    "dinov3-convnext-s": "convnext_small",
    "dinov3-convnext-b": "convnext_base",
    "dinov3-convnext-l": "convnext_large",
}


def hf_files(config: VitConfig, theta: float = 100.0) -> dict[str, Any]:
    """config.json and preprocessor_config.json of transformers. theta: the base of the rotary periods. Raises WeightsError
    for a size its classes cannot have."""
    version3 = config.positions == "rope"
    hidden = config.hidden or 4 * config.dim
    common = {
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_channels": config.channels,
        "patch_size": config.patch_size,
        "image_size": 224 if version3 else config.grid * config.patch_size,
        "layer_norm_eps": config.norm_eps,
        "drop_path_rate": config.drop_path,
        "layerscale_value": config.layer_scale,
        "dtype": "float32",
    }
    if version3:
        model = {
            "architectures": ["DINOv3ViTModel"],
            "model_type": "dinov3_vit",
            "intermediate_size": hidden,
            "hidden_act": "gelu" if config.ffn == "gelu" else "silu",
            "use_gated_mlp": config.ffn == "swiglu",
            "num_register_tokens": config.registers,
            "query_bias": config.qkv_bias,
            "key_bias": config.qkv_bias and not config.mask_k_bias,
            "value_bias": config.qkv_bias,
            "rope_theta": theta,
            "pos_embed_rescale": config.rope_rescale,
        }
    else:
        model = {
            "architectures": ["Dinov2WithRegistersModel" if config.registers else "Dinov2Model"],
            "model_type": "dinov2_with_registers" if config.registers else "dinov2",
            "mlp_ratio": _ratio(config, hidden),
            "use_swiglu_ffn": config.ffn == "swiglu",
            "qkv_bias": config.qkv_bias,
        } | ({"num_register_tokens": config.registers} if config.registers else {})
    return {"config.json": model | common, "preprocessor_config.json": _preprocessor(config, version3)}


def convnext_hf_files(config: ConvNextConfig) -> dict[str, Any]:
    """config.json and preprocessor_config.json of transformers' DINOv3ConvNextModel."""
    model = {
        "architectures": ["DINOv3ConvNextModel"],
        "model_type": "dinov3_convnext",
        "num_channels": config.channels,
        "hidden_sizes": list(config.dims),
        "depths": list(config.depths),
        "hidden_act": "gelu",
        "layer_norm_eps": config.norm_eps,
        "layer_scale_init_value": config.layer_scale,
        "drop_path_rate": 0.0,
        "image_size": config.image_size,
        "dtype": "float32",
    }
    return {"config.json": model, "preprocessor_config.json": _preprocessor(config, version3=True)}


def convnext_timm_files(config: ConvNextConfig) -> dict[str, Any]:
    """config.json of timm, with the architecture's name where timm has this size."""
    sizes = (config.depths, config.dims)
    names = [TIMM_NAMES[name] for name, c in CONVNEXT_CONFIGS.items() if (c.depths, c.dims) == sizes]
    return {"config.json": _timm_config(config, names, config.image_size, fixed=False)}


def _preprocessor(config: BackboneConfig, version3: bool) -> dict[str, Any]:
    return {
        "image_processor_type": "DINOv3ViTImageProcessor" if version3 else "BitImageProcessor",
        "do_resize": True,
        "size": {"height": 224, "width": 224} if version3 else {"shortest_edge": 256},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
    } | ({} if version3 else {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "resample": 3})


def _timm_config(config: BackboneConfig, names: list[str], size: int, fixed: bool) -> dict[str, Any]:
    """`fixed`: the positions belong to images of this size, or timm builds the model for 224 and resizes them for good."""
    pixels: dict[str, Any] = {"input_size": [config.channels, size, size], "mean": config.mean, "std": config.std}
    if fixed:
        pixels["fixed_input_size"] = True
    return ({"architecture": names[0]} if names else {}) | {
        "num_classes": 0,
        "num_features": config.dim,
        "pretrained_cfg": pixels | {"interpolation": "bicubic"},
    }


def timm_files(config: VitConfig) -> dict[str, Any]:
    """config.json of timm, with the architecture's name where timm has this size."""
    plain = {
        "mean": VitConfig.mean,
        "std": VitConfig.std,
        "drop_path": 0.0,
        "rope_rescale": None,
        "layer_scale": 1e-5,
        "rope_periods": VitConfig.rope_periods,
    }
    same = replace(config, **plain)
    names = [TIMM_NAMES[name] for name, c in VIT_CONFIGS.items() if name in TIMM_NAMES and replace(c, **plain) == same]
    size = config.patch_size * config.grid if config.positions != "rope" else 256
    return {"config.json": _timm_config(config, names, size, fixed=config.positions != "rope")}


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _ratio(config: VitConfig, hidden: int) -> int:
    """transformers' `mlp_ratio` of a DINOv2; its gated form takes two thirds of the width, rounded up to 8."""
    for ratio in range(1, 17):
        wide = ratio * config.dim
        if hidden == (wide if config.ffn == "gelu" else (wide * 2 // 3 + 7) // 8 * 8):
            return ratio
    raise WeightsError(f"transformers has no DINOv2 of width {config.dim} with a feed-forward width of {hidden}.")

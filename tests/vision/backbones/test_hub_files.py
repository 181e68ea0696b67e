"""Configuration files for transformers and timm: the first builds our network from them, the second finds it by its name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from tenfold.errors import WeightsError
from tenfold.vision.backbones.convnext import CONVNEXT_CONFIGS, ConvNextConfig
from tenfold.vision.backbones.hub_files import (
    TIMM_NAMES,
    convnext_hf_files,
    convnext_timm_files,
    hf_files,
    timm_files,
)
from tenfold.vision.backbones.vit import VIT_CONFIGS, VitConfig


def parameters_of(files: dict[str, Any]) -> int:
    """Of the network that transformers builds from these files, without memory for it."""
    described = dict(files["config.json"])
    described.pop("architectures")
    described.pop("dtype")
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModel.from_config(AutoConfig.for_model(**described)).parameters())


def parameters(config: VitConfig | ConvNextConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


@pytest.mark.parametrize("name", ["dinov2-s", "dinov2-g", "dinov2-s-reg", "dinov3-s", "dinov3-s+"])
def test_transformers_builds_a_network_of_the_same_size(name: str) -> None:
    config = VIT_CONFIGS[name]
    masked = config.depth * config.dim if config.mask_k_bias else 0  # the biases of k, which it leaves out
    assert parameters_of(hf_files(config)) == parameters(config) - masked


def test_transformers_builds_a_convnext_of_the_same_size() -> None:
    config = CONVNEXT_CONFIGS["dinov3-convnext-t"]
    assert parameters_of(convnext_hf_files(config)) == parameters(config)


def test_a_feed_forward_width_that_transformers_cannot_have_is_refused() -> None:
    with pytest.raises(WeightsError, match="no DINOv2 of width 384 with a feed-forward width of 1000"):
        hf_files(replace(VIT_CONFIGS["dinov2-s"], hidden=1000))


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_timm_gets_the_name_of_a_released_size_and_none_for_another(name: str) -> None:
    config = VIT_CONFIGS.get(name) or CONVNEXT_CONFIGS[name]
    if isinstance(config, ConvNextConfig):
        other: Any = replace(config, depths=(1, 1, 1, 1))
        named, unnamed = (convnext_timm_files(c)["config.json"] for c in (config, other))
    else:
        retrained = replace(config, drop_path=0.4, mean=(0.5, 0.5, 0.5))  # what does not change the architecture
        named, unnamed = (timm_files(c)["config.json"] for c in (retrained, replace(config, depth=3)))
    assert named["architecture"] == TIMM_NAMES[name]
    assert "architecture" not in unnamed
    assert named["num_features"] == unnamed["num_features"] == config.dim


def test_only_learned_positions_fix_the_size_of_timm_s_images() -> None:
    pixels = {name: timm_files(VIT_CONFIGS[name])["config.json"]["pretrained_cfg"] for name in ("dinov2-s", "dinov3-s")}
    assert pixels["dinov2-s"]["fixed_input_size"]
    assert pixels["dinov2-s"]["input_size"] == [3, 518, 518]
    assert "fixed_input_size" not in pixels["dinov3-s"]

"""Spellings of weight names: no two of our parameters share a name, and every layout is recognised as itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tenfold.export.reading import Source
from tenfold.export.weights import Weights
from tenfold.vision.backbones.spellings import (
    HF_V2_IN_MEMORY,
    OFFICIAL_V2,
    OFFICIAL_V3,
    SPELLINGS,
    TIMM_V2,
    TIMM_V2_REGISTERS,
    Spelling,
)
from tenfold.vision.backbones.vit import VisionTransformer, VitConfig
from tenfold.vision.backbones.weights import split

EACH = pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda s: f"{s.layout}{s.version}{'m' * s.in_memory}")


def model_of(spelling: Spelling, ffn: str = "gelu") -> VitConfig:
    """A network that this layout can hold."""
    v2 = spelling.version == 2
    return VitConfig(
        *(16, 2, 2),
        patch_size=14 if v2 else 16,
        ffn=ffn,
        registers=0 if spelling is TIMM_V2 else 2,
        positions="antialias" if v2 else "rope",
        norm_eps=1e-6 if v2 else 1e-5,
        mask_k_bias=not v2,
        grid=3,
    )


def tensors_of(spelling: Spelling, ffn: str = "gelu") -> dict[str, torch.Tensor]:
    config = model_of(spelling, ffn)
    return split(Weights(config, VisionTransformer(config).state_dict()), spelling)[0]


def source(tensors: dict[str, torch.Tensor]) -> Source:
    return Source(Path("w.pth"), tensors)


@EACH
@pytest.mark.parametrize("ffn", ["gelu", "swiglu"])
def test_no_two_parameters_have_a_name_in_common(spelling: Spelling, ffn: str) -> None:
    own = VisionTransformer(model_of(spelling, ffn)).state_dict()
    names = [name for parameter in own for name in spelling.names(parameter, gated=ffn == "swiglu")]
    assert len(names) == len(set(names))
    assert len(names) >= len(own) - 6  # what a layout lacks: masks, periods, a norm


@EACH
@pytest.mark.parametrize("ffn", ["gelu", "swiglu"])
def test_the_first_spelling_that_recognises_a_layout_is_its_own(spelling: Spelling, ffn: str) -> None:
    tensors = tensors_of(spelling, ffn)
    first = next(other for other in SPELLINGS if other.recognises(source(tensors)))
    assert (first.layout, first.version) == (spelling.layout, spelling.version)
    assert first.merged_cls == spelling.merged_cls
    assert first.in_memory == spelling.in_memory


def test_names_of_no_vision_transformer_are_recognised_by_none() -> None:
    strange = {"blocks.0.attention.weight": torch.zeros(1), "layer.0.norm.weight": torch.zeros(1)}
    assert not [spelling for spelling in SPELLINGS if spelling.recognises(source(strange))]


@pytest.mark.parametrize("spelling", [OFFICIAL_V2, OFFICIAL_V3], ids=["v2", "v3"])
def test_a_training_checkpoint_loses_its_heads_its_prefix_and_its_chunks(spelling: Spelling) -> None:
    plain = tensors_of(spelling)
    wrapped = {f"module.backbone.{name.replace('blocks.', 'blocks.7.')}": value for name, value in plain.items()}
    wrapped |= {"module.dino_head.mlp.0.weight": torch.zeros(1), "ibot_head.last_layer.weight": torch.zeros(1)}
    again = spelling.normalized(wrapped)
    assert again.keys() == plain.keys()
    assert all(again[name] is value for name, value in plain.items())


def test_q_k_and_v_of_one_matrix_are_three_in_the_layouts_that_part_them() -> None:
    name = "blocks.3.attention.qkv.weight"
    assert OFFICIAL_V2.names(name) == ("blocks.3.attn.qkv.weight",)
    assert HF_V2_IN_MEMORY.names(name) == tuple(f"encoder.layer.3.attention.{part}_proj.weight" for part in "qkv")
    assert OFFICIAL_V3.names("blocks.3.ffn.down.bias", gated=True) == ("blocks.3.mlp.w3.bias",)
    assert TIMM_V2.names("register_tokens") == ()
    assert TIMM_V2_REGISTERS.names("register_tokens") == ("reg_token",)

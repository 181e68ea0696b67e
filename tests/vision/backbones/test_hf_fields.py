"""Every field of a DINOv2's or DINOv3's config.json is used, ignored for a reason, or refused; transformers is the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tenfold
from tenfold.errors import WeightsError
from tenfold.export.fields import Fields
from tenfold.export.weights import convert, read
from tenfold.vision.backbones.hf_fields import CONVNEXT_FIELDS, VIT_FIELDS, theta_of

SIZES = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
IMAGE = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def dinov3(folder: Path, **changes: Any) -> transformers.DINOv3ViTModel:
    torch.manual_seed(0)
    config = transformers.DINOv3ViTConfig(**SIZES, patch_size=16, num_register_tokens=4, **changes)
    model = transformers.DINOv3ViTModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    model.save_pretrained(folder)
    return model


def edit(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@torch.inference_mode()
def gap(folder: Path, theirs: transformers.DINOv3ViTModel) -> float:
    ours = tenfold.load(folder)(IMAGE).patch_tokens.flatten(1, 2)
    return float((ours - theirs(pixel_values=IMAGE).last_hidden_state[:, 5:]).abs().max())


@pytest.mark.parametrize("changes", [{}, {"rope_theta": 10000.0}, {"layer_norm_eps": 1e-3}])
def test_features_are_those_of_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = dinov3(tmp_path / "hf", **changes)
    assert gap(tmp_path / "hf", theirs) < 1e-3
    convert(tmp_path / "hf", tmp_path / "own.safetensors")
    convert(tmp_path / "own.safetensors", tmp_path / "again", to="hf")
    assert gap(tmp_path / "again", transformers.DINOv3ViTModel.from_pretrained(tmp_path / "again").eval()) < 1e-3
    assert gap(tmp_path / "again", theirs) < 1e-3


def test_a_base_is_kept_or_the_layout_refused(tmp_path: Path) -> None:
    dinov3(tmp_path / "hf", rope_theta=10000.0)
    with pytest.raises(WeightsError, match="timm layout does not store rope_theta"):
        convert(tmp_path / "hf", tmp_path / "timm", to="timm")
    with pytest.raises(WeightsError, match='"exact" computes'):
        tenfold.load(tmp_path / "hf", rope_periods="exact")
    with pytest.raises(WeightsError, match="from no rope_theta"):
        theta_of(torch.tensor([1.0, 7.0, 3.0, 2.0]), tmp_path)


def test_a_training_rescale_is_read(tmp_path: Path) -> None:
    dinov3(tmp_path / "hf", pos_embed_rescale=None)
    assert read(tmp_path / "hf")[1].config.rope_rescale is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "relu"}, "hidden_act = 'relu'; allowed with these tensors is 'gelu'"),
        ({"rope_theta": -1.0}, "a number above 0"),
        ({"rope_thata": 7.0}, "is it rope_theta"),
        ({"window_size": 7}, "window_size = 7"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_would_change_the_features_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    dinov3(tmp_path / "hf")
    with pytest.raises(WeightsError, match=words):
        tenfold.load(edit(tmp_path / "hf", **changes))


def test_a_gated_network_needs_silu(tmp_path: Path) -> None:
    theirs = dinov3(tmp_path / "silu", use_gated_mlp=True, hidden_act="silu")
    assert gap(tmp_path / "silu", theirs) < 1e-3
    dinov3(tmp_path / "gelu", use_gated_mlp=True)
    with pytest.raises(WeightsError, match="hidden_act = 'gelu'"):
        tenfold.load(tmp_path / "gelu")


@pytest.mark.parametrize("registers", [0, 4])
def test_a_dinov2_of_another_activation_is_refused(registers: int, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 70, "patch_size": 14}
    if registers:
        model = transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**sizes))
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    model.save_pretrained(tmp_path / "hf")
    tenfold.load(tmp_path / "hf")
    with pytest.raises(WeightsError, match="hidden_act = 'quick_gelu'"):
        tenfold.load(edit(tmp_path / "hf", hidden_act="quick_gelu"))


def test_a_convnext_of_another_activation_is_refused(tmp_path: Path) -> None:
    config = transformers.DINOv3ConvNextConfig(hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1])
    transformers.DINOv3ConvNextModel(config).save_pretrained(tmp_path / "hf")
    tenfold.load(tmp_path / "hf")
    with pytest.raises(WeightsError, match="hidden_act = 'relu'"):
        tenfold.load(edit(tmp_path / "hf", hidden_act="relu"))


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        (VIT_FIELDS, transformers.DINOv3ViTConfig),
        (VIT_FIELDS, transformers.Dinov2Config),
        (VIT_FIELDS, transformers.Dinov2WithRegistersConfig),
        (CONVNEXT_FIELDS, transformers.DINOv3ConvNextConfig),
    ],
)
def test_every_field_of_transformers_has_a_fate(fields: Fields, kind: type) -> None:
    values = kind().to_dict()
    fates = {name: fields.fate(name) for name in values}
    assert [name for name, fate in fates.items() if fate == "refused"] == []
    assert all(fates[name] == "used" for name in ("hidden_act", "layer_norm_eps", "model_type"))
    fields.check(values, "transformers' own")

"""Our vision transformer gives transformers' features, and the official maths where transformers departs from it.

Weights are random and perturbed so that every parameter matters, the block gains among them, and features are of size 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel

from parity.perturbed import perturbed, tokens
from tenfold.data.tensors import save_own
from tenfold.export.weights import convert, load
from tenfold.nn.embed import resize_positions
from tenfold.vision.backbones.vit import VIT_CONFIGS, VisionTransformer

SIZES = [(224, 224), (160, 352), (96, 96)]
PATCH14 = [(224, 224), (154, 350), (98, 98)]


def oracle(model: VisionTransformer, folder: Path) -> torch.nn.Module:
    """transformers' own class on the same weights, by way of our converter."""
    save_own(folder / "own.safetensors", model.state_dict(), "vit", model.config)
    convert(folder / "own.safetensors", folder / "hf", to="hf")
    return AutoModel.from_pretrained(folder / "hf").eval()


CASES = [
    ("dinov2-s-reg", 12, 1e-5),
    ("dinov2-b-reg", 3, 1e-5),
    ("dinov2-g-reg", 1, 1e-5),
    ("dinov3-s", 12, 1e-5),
    ("dinov3-b", 3, 1e-5),
    ("dinov3-s+", 12, 2e-5),
]


@pytest.mark.parametrize(("name", "depth", "tolerance"), CASES)
@torch.inference_mode()
def test_features_equal_transformers(name: str, depth: int, tolerance: float, tmp_path: Path) -> None:
    model = perturbed(replace(VIT_CONFIGS[name], depth=depth))
    _compare(model, tmp_path, tolerance)


@torch.inference_mode()
def test_a_7b_like_model_without_qkv_bias_equals_transformers(tmp_path: Path) -> None:
    """Heads of 128, SwiGLU, no q, k and v bias, a norm of its own for local crops: the 7B at an eighth of its width."""
    config = replace(VIT_CONFIGS["dinov3-7b"], dim=512, heads=4, hidden=1024, depth=2)
    _compare(perturbed(config), tmp_path, 1e-5)


@pytest.mark.parametrize(
    ("name", "depth", "side", "tolerance"),
    [("dinov3-s", 12, 512, 1e-5), ("dinov3-s+", 12, 512, 2e-5), ("dinov2-g-reg", 1, 518, 1e-5)],
)
@torch.inference_mode()
def test_large_images_give_transformers_features_too(
    name: str, depth: int, side: int, tolerance: float, tmp_path: Path
) -> None:
    _compare(perturbed(replace(VIT_CONFIGS[name], depth=depth)), tmp_path, tolerance, [(side, side)], batch=1)


def _compare(
    model: VisionTransformer,
    folder: Path,
    tolerance: float,
    sizes: Sequence[tuple[int, int]] = (),
    batch: int = 2,
) -> None:
    reference = oracle(model, folder)
    p = model.config.patch_size
    height = width = 0
    for height, width in sizes or (PATCH14 if p == 14 else SIZES):
        images = torch.randn(batch, 3, height, width)
        ours = tokens(model, images)
        assert 0.5 < ours.square().mean().sqrt() < 2, "the features are not of size 1, so the tolerance says nothing"
        assert (ours - reference(images).last_hidden_state).abs().max() <= tolerance
    masks = torch.rand(batch, height // p * (width // p)) < 0.4
    theirs = reference(images, bool_masked_pos=masks).last_hidden_state
    assert (tokens(model, images, masks) - theirs).abs().max() <= tolerance


GOLDEN = [
    ((16, 16), "offset", (0.63605, 0.48327, -0.06696)),
    ((16, 16), "antialias", (0.65921, 0.69292, -0.49596)),
    ((10, 25), "offset", (1.70417, -0.77740, -0.12565)),
    ((10, 25), "antialias", (0.97190, -0.43094, -0.34754)),
]


@pytest.mark.parametrize(("size", "rule", "values"), GOLDEN)
def test_learned_positions_have_the_golden_values(size: tuple[int, int], rule: str, values: tuple[float, ...]) -> None:
    i, j = torch.meshgrid(torch.arange(37.0), torch.arange(37.0), indexing="ij")
    grid = (i.sin() + (2 * j).cos())[..., None]
    out = resize_positions(grid, *size, rule)[..., 0]  # type: ignore[arg-type]
    assert torch.allclose(torch.stack([out[0, 0], out[3, 7], out[-1, -1]]), torch.tensor(values), atol=1e-5)
    assert torch.equal(resize_positions(grid, 37, 37, rule), grid)  # type: ignore[arg-type]


def official_dinov2(state: dict[str, Tensor], images: Tensor, heads: int, depth: int) -> Tensor:
    """DINOv2 without registers on official names, as published: plain softmax attention, positions moved by 0.1."""
    dim = state["cls_token"].shape[-1]
    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14)
    h, w = x.shape[2:]
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    grid = state["pos_embed"][:, 1:].reshape(1, 37, 37, dim).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=((h + 0.1) / 37, (w + 0.1) / 37), mode="bicubic")
    x = x + torch.cat([state["pos_embed"][:, :1], grid.flatten(2).transpose(1, 2)], dim=1)

    def norm(y: Tensor, name: str) -> Tensor:
        return F.layer_norm(y, (dim,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    for n in range(depth):
        b = {k.removeprefix(f"blocks.{n}."): v for k, v in state.items() if k.startswith(f"blocks.{n}.")}
        qkv = F.linear(norm(x, f"blocks.{n}.norm1"), b["attn.qkv.weight"], b["attn.qkv.bias"])
        q, k, v = qkv.reshape(*x.shape[:2], 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
        y = ((q @ k.transpose(-1, -2)) / (dim // heads) ** 0.5).softmax(-1) @ v
        y = F.linear(y.transpose(1, 2).flatten(2), b["attn.proj.weight"], b["attn.proj.bias"])
        x = x + y * b["ls1.gamma"]
        y = F.gelu(F.linear(norm(x, f"blocks.{n}.norm2"), b["mlp.fc1.weight"], b["mlp.fc1.bias"]))
        x = x + F.linear(y, b["mlp.fc2.weight"], b["mlp.fc2.bias"]) * b["ls2.gamma"]
    return norm(x, "norm")


@pytest.mark.parametrize(("name", "depth"), [("dinov2-s", 12), ("dinov2-b", 3)])
@torch.inference_mode()
def test_dinov2_without_registers_follows_the_official_maths_and_not_transformers(
    name: str, depth: int, tmp_path: Path
) -> None:
    model = perturbed(replace(VIT_CONFIGS[name], depth=depth))
    reference = oracle(model, tmp_path)
    convert(tmp_path / "own.safetensors", tmp_path / "official.pth", to="official")
    state = torch.load(tmp_path / "official.pth", weights_only=True)
    for size in PATCH14:
        images = torch.randn(1, 3, *size)
        ours = tokens(model, images)
        assert (ours - official_dinov2(state, images, model.config.heads, depth)).abs().max() <= 1e-5
        if size == (224, 224):  # the offset of 0.1, which transformers dropped, must not get lost here
            assert (ours - reference(images).last_hidden_state).abs().max() > 0.05


@torch.inference_mode()
def test_rounded_periods_are_used_as_in_the_file_unless_exact_ones_are_asked_for(tmp_path: Path) -> None:
    model = perturbed(replace(VIT_CONFIGS["dinov3-s"], depth=2))
    exact = tokens(model, images := torch.randn(1, 3, 96, 96))
    assert model.rope is not None
    model.rope.periods = model.rope.periods.bfloat16()
    save_own(tmp_path / "own.safetensors", model.state_dict(), "vit", model.config)
    rounded = tokens(load(tmp_path / "own.safetensors"), images)  # type: ignore[arg-type]
    assert (rounded - exact).abs().max() > 1e-4
    again = tokens(load(tmp_path / "own.safetensors", rope_periods="exact"), images)  # type: ignore[arg-type]
    assert torch.equal(again, exact)

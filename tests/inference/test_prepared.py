"""A prepared block gives the plain block's values in less time and memory."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tenfold.errors import UsageError
from tenfold.inference.prepared import HalfBlock, PackedBlock
from tenfold.kernels.linear import Workspace
from tenfold.kernels.machine import bf16_refusal
from tenfold.nn.attention import AttentionConfig
from tenfold.nn.block import Block, BlockConfig
from tenfold.nn.ffn import GeluFFN, SquaredReLUFFN, SwiGLUFFN
from tenfold.nn.rope import AxialRope
from tenfold.vision.backbones.vit import VIT_CONFIGS, VisionTransformer


@pytest.mark.parametrize("ffn", [GeluFFN, SwiGLUFFN])
@pytest.mark.parametrize("options", [{}, {"kv_heads": 2, "causal": True}, {"mask_k_bias": True}, {"qkv_bias": False}])
def test_a_packed_block_equals_the_block(ffn: type[nn.Module], options: dict) -> None:
    torch.manual_seed(0)
    attention = AttentionConfig(64, 4, **options)
    block = Block(BlockConfig(attention, layer_scale=0.3), ffn(64, 96)).eval()  # type: ignore[call-arg]
    for p in block.parameters():
        nn.init.normal_(p, 0.0, 0.2)
    packed, rotation = PackedBlock(block, Workspace()), AxialRope(16)(3, 4)
    for prefix, batch in ((5, 2), (0, 3), (1, 1)):
        x = torch.randn(batch, prefix + 12, 64)
        with torch.no_grad():
            expected = block(x, rotation)
            assert torch.allclose(packed(x.clone(), rotation), expected, atol=2e-5)
            assert torch.allclose(packed(x.clone()), block(x), atol=2e-5)


def away(found: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference."""
    return float((found.double() - exact).square().mean().sqrt())


def as_exact(fast: Tensor, plain: Tensor, exact: Tensor) -> bool:
    """Whether `fast` is as near to float64 as fp32's own rounding leaves the plain modules. How large that is depends on the
    width, the magnitudes and the processor's order of sums, so it is measured and not a constant."""
    return away(fast, exact) <= 2 * away(plain, exact) + 1e-9


@pytest.mark.parametrize("name", ["dinov3-s", "dinov3-s+", "dinov2-s-reg", "mini"])
def test_a_prepared_model_gives_the_same_features(name: str) -> None:
    torch.manual_seed(0)
    config = VIT_CONFIGS[name]
    model = VisionTransformer(replace(config, layer_scale=config.layer_scale and 0.3)).eval()
    fast, double = model.for_inference(), copy.deepcopy(model).double()
    p = config.patch_size
    for height, width, batch in ((8, 8, 2), (3, 5, 1), (14, 2, 3)):  # buffers grow, shrink and are used again
        images = torch.randn(batch, 3, height * p, width * p)
        masks = torch.rand(batch, height * width) < 0.3
        with torch.inference_mode():
            a, b, exact = model(images, masks), fast(images, masks), double(images.double(), masks)
        assert as_exact(b.cls_token, a.cls_token, exact.cls_token)
        assert as_exact(b.patch_tokens, a.patch_tokens, exact.patch_tokens)
    with torch.no_grad():  # after inference mode: its memory must still be usable
        plain = model.get_intermediate_layers(images, n=3, norm=False)
        quick = fast.get_intermediate_layers(images, n=3, norm=False)
        true = double.get_intermediate_layers(images.double(), n=3, norm=False)
    for whole, part, exactly in zip(plain, quick, true, strict=True):
        assert as_exact(part, whole, exactly)
    assert isinstance(model.blocks[0], Block)  # the model itself is as it was


def test_a_weight_off_by_a_thousandth_is_seen() -> None:
    """The measure above is not so wide that a real fault fits into it."""
    torch.manual_seed(0)
    model = VisionTransformer(replace(VIT_CONFIGS["dinov3-s+"], layer_scale=0.3)).eval()
    double, wrong = copy.deepcopy(model).double(), copy.deepcopy(model)
    with torch.no_grad():
        next(p for n, p in wrong.named_parameters() if n.endswith("blocks.11.ffn.down.weight"))[0] *= 1.001
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        plain, found, exact = model(images), wrong.for_inference()(images), double(images.double())
    assert not as_exact(found.patch_tokens, plain.patch_tokens, exact.patch_tokens)


@pytest.mark.skipif(bf16_refusal() is not None, reason=f"this machine: {bf16_refusal()}")
@pytest.mark.parametrize("ffn", [GeluFFN, SwiGLUFFN])
@pytest.mark.parametrize("options", [{}, {"kv_heads": 2, "causal": True}, {"mask_k_bias": True}, {"qkv_bias": False}])
def test_a_half_block_is_as_near_to_fp32_as_the_block_in_bf16(ffn: type[nn.Module], options: dict) -> None:
    torch.manual_seed(0)
    block = Block(BlockConfig(AttentionConfig(64, 4, **options), layer_scale=0.3), ffn(64, 96)).eval()  # type: ignore[call-arg]
    for p in block.parameters():
        nn.init.normal_(p, 0.0, 0.2)
    half, rotation = HalfBlock(block), AxialRope(16)(3, 4)
    plain = copy.deepcopy(block).bfloat16()
    for prefix, batch in ((5, 2), (0, 3), (1, 1)):
        x = torch.randn(batch, prefix + 12, 64).bfloat16()
        with torch.no_grad():
            exact = block(x.float(), rotation)
            allowed = 1.5 * (plain(x, rotation).float() - exact).square().mean().sqrt()
            assert (half(x, rotation).float() - exact).square().mean().sqrt() <= allowed


def test_bf16_weights_are_rounded_once() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(replace(VIT_CONFIGS["dinov3-s"], depth=2, layer_scale=0.3)).eval()
    rounded = VisionTransformer(model.config).eval()
    rounded.load_state_dict({n: t if "periods" in n else t.bfloat16().float() for n, t in model.state_dict().items()})
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected, found = rounded(images).cls_token, model.for_inference(torch.bfloat16)(images).cls_token
    assert (found.float() - expected).abs().max() <= (1e-5 if found.dtype == torch.float32 else 0.1)


def test_a_block_without_a_packed_form_says_why() -> None:
    attention = AttentionConfig(16, 2)
    with pytest.raises(UsageError, match="post-norm"):
        PackedBlock(Block(BlockConfig(attention, norm_first=False), GeluFFN(16, 32)), Workspace())
    with pytest.raises(UsageError, match="SquaredReLUFFN"):
        PackedBlock(Block(BlockConfig(attention), SquaredReLUFFN(16, 32)), Workspace())


def test_preparing_for_another_number_format_is_refused() -> None:
    with pytest.raises(UsageError, match="bfloat16"):
        VisionTransformer(VIT_CONFIGS["mini"]).for_inference(torch.float16)

"""The vision transformer traces whole: torch.compile finds no break and torch.export gives the same features."""

from __future__ import annotations

import pytest
import torch

from tenfold.vision.backbones.vit import VIT_CONFIGS, VisionTransformer, VitConfig

pytestmark = pytest.mark.compiled
CONFIGS = {
    "rope": VitConfig(64, 2, 2, registers=4, ffn="swiglu", hidden=96, mask_k_bias=True),
    "learned": VitConfig(64, 2, 2, patch_size=14, positions="offset"),
    "mini": VIT_CONFIGS["mini"],
}


def network(name: str) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(CONFIGS[name]).eval()


class Tokens(torch.nn.Module):
    """Tensors out, as an exported program needs."""

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(images)
        return output.cls_token, output.patch_tokens


@pytest.mark.parametrize("name", CONFIGS)
def test_compiling_finds_no_break_and_changes_nothing(name: str) -> None:
    model = Tokens(network(name))
    images = torch.randn(2, 3, 56, 84)
    images = images[..., :48, :80] if name != "learned" else images
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for ours, plain in zip(compiled(images), model(images)):
            torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_exported_program_gives_the_same_features(name: str) -> None:
    model = Tokens(network(name))
    images = torch.randn(2, 3, 56, 56) if name == "learned" else torch.randn(2, 3, 48, 64)
    program = torch.export.export(model, (images,))
    with torch.no_grad():
        for ours, plain in zip(program.module()(images), model(images)):
            torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)

"""What the wing accepts as a backbone: a vision transformer or a ConvNeXt, by its configuration.

model = build_backbone(ConvNextConfig())          both have the same methods and the same output type
"""

from __future__ import annotations

from pathlib import Path

from tenfold.errors import UsageError
from tenfold.export.weights import load
from tenfold.vision.backbones.convnext import ConvNeXt, ConvNextConfig
from tenfold.vision.backbones.vit import VisionTransformer, VitConfig

Backbone = VisionTransformer | ConvNeXt
BackboneConfig = VitConfig | ConvNextConfig


def build_backbone(config: BackboneConfig) -> Backbone:
    """The network of this configuration, with initial weights."""
    return ConvNeXt(config) if isinstance(config, ConvNextConfig) else VisionTransformer(config)


def kind_of(config: BackboneConfig) -> str:
    """The name under which its weights are saved and loaded."""
    return "convnext" if isinstance(config, ConvNextConfig) else "vit"


def layer_of(name: str, config: BackboneConfig) -> tuple[int, int] | None:
    """(layer, layers) of a parameter for layer-wise decay. Blocks count from the input; the embeddings are layer 0, and
    the final norm and the heads take the full rate. In a ConvNeXt a patch merge belongs to the blocks before it."""
    words, layers = name.split("."), config.depth + 1
    if isinstance(config, ConvNextConfig):
        part = next((word for word in ("stages", "downsample") if word in words), None)
        if part is None:
            return None
        place = words.index(part)
        before = sum(config.depths[: int(words[place + 1])])
        return (before + int(words[place + 2]) + 1 if part == "stages" else before), layers
    if "blocks" in words:
        return int(words[words.index("blocks") + 1]) + 1, layers
    embeds = any(part in name for part in ("patch_embed", "pos_embed", "_token"))
    return (0, layers) if embeds else None


def model_of(weights: Path) -> Backbone:
    """The vision transformer or ConvNeXt in `weights`; a UsageError when it holds something else."""
    model = load(weights)
    if not isinstance(model, Backbone):
        raise UsageError(f"{weights} holds a {type(model).__name__}, not a vision transformer or ConvNeXt.")
    return model

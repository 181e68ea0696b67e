"""The backbone protocol: what the configuration and the module of every image backbone offer.

    model = VitConfig().build()          any backbone, by its configuration: pretrained, distilled into, probed, saved, loaded
    model = model_of("runs/a")           the backbone in a weights file or run folder

To add one: write a file with a `BackboneConfig` (a frozen dataclass with a default for every field) and a `Backbone`, and
register it with one line in registry.py:

    backbones.add("toy", "tenfold.vision.backbones.toy:ToyConfig", "what it is")

The line is all that training, `tenfold.load` and the evaluations need. Layouts of other people's weights are optional:
a `Family` of the same kind in export/weights.py.

    B batch   H W image sides   h w patch grid   R registers   P = h w   D width
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tenfold.config import by_kind, require
from tenfold.errors import UsageError
from tenfold.export.weights import load
from tenfold.kernels.machine import bf16_refusal
from tenfold.registry import backbones

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class VisionOutput:
    """Features after the final norm: (B, D), (B, R, D), (B, h, w, D)."""

    cls_token: Float[Tensor, "b d"]
    register_tokens: Float[Tensor, "b r d"]
    patch_tokens: Float[Tensor, "b h w d"]

    def pooled(self, feature: Literal["cls", "patch-mean"]) -> Float[Tensor, "b d"]:
        """One vector for each image: the CLS token, or the mean of the patch tokens."""
        return self.cls_token if feature == "cls" else self.patch_tokens.flatten(1, 2).mean(1)


class BackboneConfig:
    """Base of every backbone's configuration. A subclass is a frozen dataclass whose fields (or properties) are these."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    kind: ClassVar[str]  # the name under which it is registered, and its weights are saved
    takes_masks: ClassVar[bool] = False  # whether `forward` replaces masked patches by a token, which iBOT needs

    dim: int  # width of the features
    depth: int  # layers, for layer-wise decay
    channels: int  # of the images
    patch_size: int  # pixels of one cell of the patch tokens' grid, in each direction
    feature: Literal["cls", "patch-mean"]  # what is taken for the whole image
    image_size: int  # side in pixels at which the weights are evaluated by default
    mean: tuple[float, float, float]  # of the pixels (0 to 1) that the network was trained with, by channel
    std: tuple[float, float, float]  # standard deviation of those pixels

    def build(self) -> Backbone:
        """The network, with initial weights."""
        raise TypeError(f"{type(self).__name__} does not build a backbone")

    def layer_of(self, name: str) -> tuple[int, int] | None:
        """(layer, layers) of a parameter for layer-wise decay, counted from the input; None when it takes the full rate, as
        heads do. `name` may have a prefix (`student.backbone.blocks.3...`)."""
        return None

    def student_of(self, teacher: BackboneConfig) -> BackboneConfig:
        """This size with the patches and pixel statistics of `teacher`, to be distilled into; without stochastic depth.
        Raises UsageError when it cannot have them."""
        raise UsageError(f"a {self.kind} cannot be distilled into.")


class Backbone(nn.Module, ABC):
    """Base of every backbone: a subclass writes `forward` and `get_intermediate_layers`, and whatever it does faster.

    `fit` says what happens to a side that is not a multiple of the patch: it is resized to the nearest one, or refused.
    """

    config: BackboneConfig

    def __init__(self, config: BackboneConfig, fit: Literal["resize", "strict"] = "resize") -> None:
        super().__init__()
        self.config = config
        self.fit: Literal["resize", "strict"] = fit

    @abstractmethod
    def forward(
        self, images: Float[Tensor, "b c height width"], masks: Bool[Tensor, "b p"] | None = None
    ) -> VisionOutput:
        """Features of normalised images; `masks` is True where a patch is hidden (None where `takes_masks` is False)."""

    @abstractmethod
    def get_intermediate_layers(
        self,
        images: Float[Tensor, "b c height width"],
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Tensor | tuple[Tensor, Tensor], ...]:
        """Patch tokens of the last `n` layers (or of the layers named by index), each (B, P, D), or (B, D, h, w) with
        `reshape`; with `return_class_token` pairs of them and the (B, D) CLS token."""

    def forward_crops(
        self, images: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None
    ) -> list[VisionOutput]:
        """Crops of several sizes, each (B_i, 3, H_i, W_i), one pass per size; the first group is the global one."""
        return [self(image, mask) for image, mask in zip(images, masks or [None] * len(images))]

    def feature(self, output: VisionOutput) -> Float[Tensor, "b d"]:
        """What is taken for the whole image: the CLS token, or the mean of the patch tokens, as the configuration says."""
        return output.pooled(self.config.feature)

    def for_inference(self, dtype: torch.dtype = torch.float32) -> Backbone:
        """A copy that only computes features, with weights in float32 or bfloat16; on a CPU without bf16 units they are
        widened again (`kernels.machine.bf16_refusal` says so)."""
        require(dtype in (torch.float32, torch.bfloat16), "dtype", dtype, "torch.float32 or torch.bfloat16")
        model = copy.deepcopy(self).eval().requires_grad_(False).to(dtype)
        return model.float() if next(model.parameters()).device.type == "cpu" and bf16_refusal() else model

    def train_without_masks(self) -> None:
        """Freezes what takes part in training only where patches are masked. Nothing by default."""


# The field of a configuration that takes any registered backbone; in files an absent `kind` is a vision transformer.
ANY_BACKBONE = by_kind(backbones.load, "vit")


def model_of(weights: Path) -> Backbone:
    """The backbone in `weights`; a UsageError when it holds something else."""
    model = load(weights)
    if not isinstance(model, Backbone):
        raise UsageError(f"{weights} holds a {type(model).__name__}, not a vision transformer or ConvNeXt.")
    return model


def fit_to_patches(images: Tensor, patch: int, fit: Literal["resize", "strict"]) -> Float[Tensor, "b c height width"]:
    """Images with sides that are multiples of the patch: resized to the nearest ones, or refused."""
    sides = images.shape[2:]
    if all(side % patch == 0 for side in sides):
        return images
    if fit == "strict":
        low = tuple(max(patch, side // patch * patch) for side in sides)
        high = tuple(-(-side // patch) * patch for side in sides)
        raise UsageError(
            f"images of {sides[0]} x {sides[1]} do not divide into patches of {patch}: "
            f"the nearest sizes are {low[0]} x {low[1]} and {high[0]} x {high[1]}."
        )
    nearest = tuple(max(patch, round(side / patch) * patch) for side in sides)
    return F.interpolate(images, size=nearest, mode="bicubic", antialias=True)

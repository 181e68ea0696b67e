"""The ConvNeXt of DINOv3: a convolutional backbone with the vision transformer's output type.

    model = ConvNeXt(CONVNEXT_CONFIGS["dinov3-convnext-t"])
    out = model(images)                          images (B, 3, H, W), normalised, sides of 32 pixels or more
    out.cls_token, out.patch_tokens              (B, D) and (B, h, w, D); register_tokens is (B, 0, D)

ConvNeXt: arXiv 2201.03545; distilled by DINOv3: arXiv 2508.10104, section 5.2. The global mean of the last map is
its CLS token, and one LayerNorm goes over [mean; map]. The last map has one cell per 32 pixels; with another `patch_size` it is
resized (bilinear) to the grid of a transformer with those patches, which distillation compares with.

    B batch   H W image sides   h w grid of the last map   D width of the last stage
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tenfold.config import require
from tenfold.errors import UsageError
from tenfold.nn.conv import ConvNextBlock, PatchMerge
from tenfold.vision.backbones.backbone import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    BackboneConfig,
    VisionOutput,
    fit_to_patches,
)

STRIDE = 32  # pixels per cell of the last map


@dataclass(frozen=True)
class ConvNextConfig(BackboneConfig):
    """Blocks and widths of the four stages. `patch_size` is the grid of the patch tokens, 32 the network's own."""

    kind: ClassVar[str] = "convnext"

    depths: tuple[int, int, int, int] = (3, 3, 9, 3)
    dims: tuple[int, int, int, int] = (96, 192, 384, 768)
    channels: int = 3
    patch_size: int = STRIDE
    norm_eps: float = 1e-6
    layer_scale: float = 1e-6
    feature: Literal["cls", "patch-mean"] = "cls"  # what is taken for the whole image
    image_size: int = 224  # side in pixels at which the weights are evaluated by default
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in ("depths", "dims"):
            values = getattr(self, name)
            require(min(values) >= 1, f"model.{name}", values, "four whole numbers >= 1")
        for name in ("channels", "patch_size", "image_size"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "a whole number >= 1")
        require(0 < self.norm_eps < 1, "model.norm_eps", self.norm_eps, "a number between 0 and 1")
        require(self.layer_scale > 0, "model.layer_scale", self.layer_scale, "a number above 0")
        require(all(value > 0 for value in self.std), "model.std", self.std, "three numbers above 0")

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.dims[-1]

    @property
    def depth(self) -> int:
        """Blocks of all stages."""
        return sum(self.depths)

    def build(self) -> ConvNeXt:
        """The network, with initial weights."""
        return ConvNeXt(self)

    def layer_of(self, name: str) -> tuple[int, int] | None:
        """Blocks count from the input; a patch merge belongs to the blocks before it."""
        words, layers = name.split("."), self.depth + 1
        part = next((word for word in ("stages", "downsample") if word in words), None)
        if part is None:
            return None
        place = words.index(part)
        before = sum(self.depths[: int(words[place + 1])])
        return (before + int(words[place + 2]) + 1 if part == "stages" else before), layers

    def student_of(self, teacher: BackboneConfig) -> ConvNextConfig:
        """This size; its last map is resized to the grid of the teacher's patches."""
        return replace(
            self,
            patch_size=teacher.patch_size,
            mean=teacher.mean,
            std=teacher.std,
            feature=teacher.feature,
            image_size=teacher.image_size,
        )


def _released(depth: int, width: int) -> ConvNextConfig:
    return ConvNextConfig((3, 3, depth, 3), (width, 2 * width, 4 * width, 8 * width))


CONVNEXT_CONFIGS: dict[str, ConvNextConfig] = {
    "dinov3-convnext-t": _released(9, 96),
    "dinov3-convnext-s": _released(27, 96),
    "dinov3-convnext-b": _released(27, 128),
    "dinov3-convnext-l": _released(27, 192),
}


class ConvNeXt(Backbone):
    """Four stages of depthwise convolutions, each after a patch merge, and one LayerNorm over [mean; map]."""

    config: ConvNextConfig

    def __init__(self, config: ConvNextConfig, fit: Literal["resize", "strict"] = "resize") -> None:
        super().__init__(config, fit)
        c = config
        widths = zip((c.channels, *c.dims), c.dims)
        self.downsample = nn.ModuleList(
            PatchMerge(n_in, n_out, 2 if i else 4, norm_first=i > 0, eps=c.norm_eps)
            for i, (n_in, n_out) in enumerate(widths)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNextBlock(dim, c.layer_scale, c.norm_eps) for _ in range(depth)))
            for depth, dim in zip(c.depths, c.dims)
        )
        self.norm = nn.LayerNorm(c.dim, eps=c.norm_eps)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(
        self, images: Float[Tensor, "b c height width"], masks: Bool[Tensor, "b p"] | None = None
    ) -> VisionOutput:
        """`masks` is there to say that a convolutional network takes none."""
        if masks is not None:
            raise UsageError("a ConvNeXt has no mask token: train it by distillation, where nothing is masked.")
        grid, maps = self._maps(images)
        mean, cells = maps[-1].mean((2, 3)), self._resized(maps[-1], grid)
        tokens = self.norm(torch.cat([mean[:, None], cells.flatten(2).transpose(1, 2)], dim=1))
        return VisionOutput(tokens[:, 0], tokens[:, 1:1], tokens[:, 1:].unflatten(1, cells.shape[2:]))

    def get_intermediate_layers(
        self,
        images: Float[Tensor, "b c height width"],
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Tensor | tuple[Tensor, Tensor], ...]:
        """Maps after the last `n` of the four stages (or after the stages named by index), each (B, P, D_stage), or
        (B, D_stage, h, w) with `reshape`; with `return_class_token` pairs of them and their mean (B, D_stage). Only the
        last stage has a norm. Each map has its own grid unless `patch_size` gives one to all."""
        if isinstance(n, int):
            require(1 <= n <= 4, "n", n, "1 to 4 stages")
        wanted = range(4 - n, 4) if isinstance(n, int) else [i % 4 for i in n]
        grid, maps = self._maps(images)
        results = []
        for i in wanted:
            mean, cells = maps[i].mean((2, 3)), self._resized(maps[i], grid)
            tokens = torch.cat([mean[:, None], cells.flatten(2).transpose(1, 2)], dim=1)
            if norm and i == 3:
                tokens = self.norm(tokens)
            patches = tokens[:, 1:]
            if reshape:
                patches = patches.transpose(1, 2).unflatten(2, cells.shape[2:]).contiguous()
            results.append((patches, tokens[:, 0]) if return_class_token else patches)
        return tuple(results)

    def _maps(self, images: Tensor) -> tuple[tuple[int, int], list[Tensor]]:
        """The grid of `patch_size`, and the map after every stage."""
        p = self.config.patch_size
        x = fit_to_patches(images, p, self.fit).to(self.norm.weight.dtype)
        if min(x.shape[2:]) < STRIDE:
            raise UsageError(
                f"images of {x.shape[2]} x {x.shape[3]} are too small for a ConvNeXt: allowed are sides >= {STRIDE}."
            )
        grid = (x.shape[2] // p, x.shape[3] // p)
        x = x.contiguous(memory_format=torch.channels_last)
        maps = []
        for merge, stage in zip(self.downsample, self.stages):
            x = stage(merge(x))
            maps.append(x)
        return grid, maps

    def _resized(self, cells: Tensor, grid: tuple[int, int]) -> Tensor:
        if self.config.patch_size == STRIDE or cells.shape[2:] == grid:
            return cells
        return F.interpolate(cells, size=grid, mode="bilinear", antialias=True)

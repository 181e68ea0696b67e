"""Multi-crop augmentation of DINO: two large and several small views of one image, cut, coloured and blurred on a CPU.

    views = MultiCrop(MultiCropConfig())(image, np.random.default_rng(0))        image uint8 (h, w, 3)
    views.global_crops, views.local_crops                                         uint8 (2, 3, 224, 224), (8, 3, 96, 96)
    collate_crops([views, ...]).global_crops                                      uint8 (2 * B, 3, 224, 224), view-major

    image ──► box ──► bicubic resize ──► flip ──► jitter ──► grey ──► blur ──► solarize        (augment.py applies it)

Semantics are torchvision's (RandomResizedCrop, ColorJitter in random order, GaussianBlur of 9 taps), as in DINOv2
(arXiv 2304.07193) and DINOv3 (arXiv 2508.10104). What happens is drawn first (`MultiCrop.draw`), then applied; crops stay
uint8, so that an image crosses processes at a quarter of the size and is normalised once, by the trainer.

    G global crops   L local crops   B images
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tenfold.config import require
from tenfold.data.sample import Sample
from tenfold.images.augment import View, apply

BLUR = {"paper": (1.0, 0.1, 0.5), "released": (0.0, 0.9, 0.5)}
SIGMA = (0.1, 2.0)  # pixels
CROP_TRIES = 10


@dataclass(frozen=True)
class MultiCropConfig:
    """Numbers and sides of the crops, and how often each operation happens.

    `jitter` are the widths of brightness, contrast, saturation (factors 1 - x .. 1 + x) and hue (turns -x .. x).
    `solarize` is the probability on the second global crop. `blur` are the probabilities on the first global crop, the
    other global crops and the local crops, or a name: "paper" as the papers print it (1, 0.1, 0.5), "released" as the
    published models were trained (0, 0.9, 0.5: the code draws the complement).
    """

    global_crops: int = 2
    local_crops: int = 8
    global_size: int = 224
    local_size: int = 96
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_probability: float = 0.8
    gray: float = 0.2
    solarize: float = 0.2
    blur: Literal["paper", "released"] | tuple[float, float, float] = "released"
    gram_size: int | None = None  # side of each global crop once more, without colour distortion; None: not made

    def __post_init__(self) -> None:
        require(self.global_crops >= 1, "crops.global_crops", self.global_crops, "a whole number >= 1")
        require(self.local_crops >= 0, "crops.local_crops", self.local_crops, "a whole number >= 0")
        for name in ("global_size", "local_size"):
            value = getattr(self, name)
            require(1 <= value <= 4096, f"crops.{name}", value, "a side in pixels from 1 to 4096")
        gram = self.gram_size
        require(gram is None or 1 <= gram <= 4096, "crops.gram_size", gram, "None or a side in pixels from 1 to 4096")
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            require(0 < low <= high <= 1, f"crops.{name}", (low, high), "two rising shares of the area in (0, 1]")
        low, high = self.ratio
        require(0 < low <= high, "crops.ratio", self.ratio, "two rising numbers above 0")
        for name in ("flip", "jitter_probability", "gray", "solarize"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"crops.{name}", value, "a probability in [0, 1]")
        *factors, hue = self.jitter
        require(all(0 <= f <= 1 for f in factors), "crops.jitter", self.jitter, "factors in [0, 1] and a hue <= 0.5")
        require(0 <= hue <= 0.5, "crops.jitter", self.jitter, "factors in [0, 1] and a hue in [0, 0.5]")
        named = isinstance(self.blur, str)
        require(not named or self.blur in BLUR, "crops.blur", self.blur, f"{', '.join(BLUR)}, or three probabilities")
        require(all(0 <= p <= 1 for p in self.blurs), "crops.blur", self.blur, "three probabilities in [0, 1]")

    @property
    def blurs(self) -> tuple[float, float, float]:
        """Probabilities on the first global crop, the other global crops, the local crops."""
        return BLUR[self.blur] if isinstance(self.blur, str) else self.blur


@dataclass(frozen=True)
class Crops:
    """The crops of one image (G and L rows), or of a batch (G * B and L * B rows, all images of one view together)."""

    global_crops: UInt8[Tensor, "g 3 H W"]
    local_crops: UInt8[Tensor, "l 3 h w"] | None
    gram_crops: UInt8[Tensor, "g 3 s s"] | None = None


class MultiCrop:
    """Cuts the crops of an image. Equal generators give equal crops, in any process."""

    def __init__(self, config: MultiCropConfig) -> None:
        self.config = config
        c = config
        views = c.global_crops + c.local_crops
        is_global = np.arange(views) < c.global_crops
        self._scale = np.where(is_global[:, None], c.global_scale, c.local_scale)
        blur = np.where(is_global, c.blurs[1], c.blurs[2])
        blur[0] = c.blurs[0]
        solarize = np.where(is_global & (np.arange(views) == 1), c.solarize, 0.0)
        always = [np.full(views, p) for p in (c.flip, c.jitter_probability, c.gray)]
        self._probability = np.stack([*always, blur, solarize], axis=1)
        self._spread = np.array(c.jitter)

    def __call__(self, image: UInt8[np.ndarray, "h w 3"], generator: np.random.Generator) -> Crops:
        """Every crop of one image, upright RGB in grey levels."""
        c = self.config
        pixels = np.ascontiguousarray(image)
        views = self.draw(image.shape[0], image.shape[1], generator)
        large, small = views[: c.global_crops], views[c.global_crops :]
        local = _cut(small, pixels, c.local_size) if small else None
        gram = None
        if c.gram_size is not None:  # the same part, the same way round, in its own colours
            plain = [View(view.box, view.flip, jitter=(), gray=False, sigma=None, solarize=False) for view in large]
            gram = _cut(plain, pixels, c.gram_size)
        return Crops(_cut(large, pixels, c.global_size), local, gram)

    def loader_transform(self, sample: Sample, generator: np.random.Generator) -> Crops:
        """The same for a Loader."""
        return self(sample.image, generator)

    def draw(self, height: int, width: int, generator: np.random.Generator) -> list[View]:
        """What will happen to each view of an image of this size, global crops first."""
        boxes = self._boxes(height, width, generator)
        draws = generator.random((len(boxes), 14))
        happens = draws[:, :5] < self._probability
        factors = (draws[:, 5:9] * 2 - 1) * self._spread + (1, 1, 1, 0)
        orders = draws[:, 9:13].argsort(1)
        sigmas = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * draws[:, 13]
        rows = zip(boxes, happens.tolist(), factors.tolist(), orders.tolist(), sigmas.tolist())
        return [
            View(
                box=box,
                flip=flip,
                jitter=tuple([(kind, factor[kind]) for kind in order]) if jitter else (),
                gray=gray,
                sigma=sigma if blur else None,
                solarize=solarize,
            )
            for box, (flip, jitter, gray, blur, solarize), factor, order, sigma in rows
        ]

    def _boxes(self, height: int, width: int, generator: np.random.Generator) -> list[tuple[int, int, int, int]]:
        """(top, left, height, width) per view: the first of 10 draws of area and aspect that fits, as torchvision."""
        c = self.config
        draws = generator.random((len(self._scale), CROP_TRIES, 4))
        low, high = self._scale[:, :1], self._scale[:, 1:]
        area = height * width * (low + (high - low) * draws[..., 0])
        ratio_low, ratio_high = math.log(c.ratio[0]), math.log(c.ratio[1])
        aspect = np.exp(ratio_low + (ratio_high - ratio_low) * draws[..., 1])
        w, h = np.rint(np.sqrt(area * aspect)).astype(int), np.rint(np.sqrt(area / aspect)).astype(int)
        fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
        top, left = (draws[..., 2] * (height - h + 1)).astype(int), (draws[..., 3] * (width - w + 1)).astype(int)
        chosen = (np.arange(len(fits)), fits.argmax(1))
        boxes = np.stack([top, left, h, w], -1)[chosen].tolist()
        return [
            (box[0], box[1], box[2], box[3]) if ok else self._center(height, width)
            for box, ok in zip(boxes, fits[chosen].tolist())
        ]

    def _center(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The middle of an image too narrow for the aspects allowed, as large as they allow."""
        low, high = self.config.ratio
        h, w = height, width
        if width / height < low:
            h = max(1, min(height, round(width / low)))
        elif width / height > high:
            w = max(1, min(width, round(height * high)))
        return (height - h) // 2, (width - w) // 2, h, w


def _cut(views: Sequence[View], image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[Tensor, "v 3 side side"]:
    stack = np.empty((len(views), side, side, 3), np.uint8)
    for row, view in zip(stack, views):
        apply(view, image, row)
    return torch.from_numpy(stack).permute(0, 3, 1, 2)


def collate_crops(items: Sequence[Crops]) -> Crops:
    """Joins the crops of B images view by view: rows 0..B-1 are every image's first view."""

    def joined(crops: list[Tensor]) -> Tensor:
        return torch.stack(crops, dim=1).flatten(0, 1)

    local = [item.local_crops for item in items if item.local_crops is not None]
    gram = [item.gram_crops for item in items if item.gram_crops is not None]
    large = joined([item.global_crops for item in items])
    return Crops(large, joined(local) if local else None, joined(gram) if gram else None)


def normalize(
    images: UInt8[Tensor, "*b 3 h w"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "*b 3 h w"]:
    """Grey levels 0..255 to network input, (x / 255 - mean) / std, in one pass and one addition."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device)[:, None, None]
    shift = torch.tensor([-m / s for m, s in zip(mean, std)], device=images.device)[:, None, None]
    return (images * scale).add_(shift)

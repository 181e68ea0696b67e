"""`tenfold bench augment`: the multi-crop set of one image, beside Pillow with torchvision's semantics.

Both sides get the same drawn views of one decoded 500 x 375 photograph (2 x 224 and 8 x 96 pixels) on one thread. The
reference is torchvision's own list of Pillow calls, written here because torchvision needs a torch build of its own; its
blur is torchvision's float convolution, since that is what GaussianBlur(9) runs. Where torchvision does import, it is
measured too.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tenfold.bench.peers import torchvision as torchvision_module
from tenfold.bench.table import interleave, on_threads, ratio
from tenfold.data.readers import read_image
from tenfold.data.samples import fetch
from tenfold.errors import MissingExtra
from tenfold.images.augment import BRIGHTNESS, CONTRAST, HUE, View, resize
from tenfold.vision.pretraining.crops import MultiCrop, MultiCropConfig

IMAGES = 8  # draws per round: enough that every operation occurs
ROUNDS = 9
WIDTH, HEIGHT = 500, 375


def run() -> dict[str, Any]:
    """Images per second of both sides in both blur modes, the ratio, the resize-only limit, the difference to Pillow."""
    photograph = _photograph()
    with on_threads(1):
        rows = [row for blur in ("paper", "released") for row in _measure(photograph, MultiCropConfig(blur=blur))]
    return {
        "title": f"2 x 224 + 8 x 96 crops of one {WIDTH} x {HEIGHT} photograph, one thread, images per second",
        "rows": rows,
        "notes": [
            "ratio: median (smallest to largest) over rounds measured in turns; above 1 tenfold is faster",
            "resize alone: cutting and resizing the same boxes and nothing else, the part that no colour arithmetic shortens",
            _difference(photograph),
        ],
    }


def _measure(photograph: np.ndarray, config: MultiCropConfig) -> list[dict[str, Any]]:
    ours = MultiCrop(config)
    picture = _pillow().fromarray(photograph)
    views = [ours.draw(HEIGHT, WIDTH, np.random.default_rng(i)) for i in range(IMAGES)]
    sides = [config.global_size] * config.global_crops + [config.local_size] * config.local_crops
    work: dict[str, Callable[[], object]] = {
        "tenfold": lambda: [ours(photograph, np.random.default_rng(i)) for i in range(IMAGES)],
        "Pillow, torchvision's semantics": lambda: [
            reference(picture, view, side) for drawn in views for view, side in zip(drawn, sides)
        ],
        "resize alone": lambda: [
            resize(_cut(photograph, view), side) for drawn in views for view, side in zip(drawn, sides)
        ],
    }
    torchvision = _torchvision(config)
    if torchvision is not None:
        work["torchvision"] = lambda: [torchvision(picture) for _ in range(IMAGES)]
    seconds = interleave(work, ROUNDS)
    rows = []
    for name, taken in seconds.items():
        middle, low, high = ratio(seconds["tenfold"], taken)
        rows.append(
            {
                "blur": config.blur,
                "side": name,
                "images/s": round(IMAGES / median(taken), 1),
                "spread": f"{IMAGES / max(taken):.0f} to {IMAGES / min(taken):.0f}",
                "tenfold is faster by": f"{middle:.2f} ({low:.2f} to {high:.2f})",
            }
        )
    return rows


def reference(picture: Any, view: View, side: int) -> np.ndarray:
    """One view by Pillow, call for call what torchvision's transforms make: uint8 (side, side, 3)."""
    from PIL import Image, ImageEnhance, ImageOps

    top, left, height, width = view.box
    image = picture.crop((left, top, left + width, top + height)).resize((side, side), Image.Resampling.BICUBIC)
    if view.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for kind, factor in view.jitter:
        if kind == HUE:
            h, s, v = image.convert("HSV").split()
            turned = np.array(h) + np.uint8(int(factor * 255) % 256)
            image = Image.merge("HSV", (Image.fromarray(turned), s, v)).convert("RGB")
        else:
            enhance = {BRIGHTNESS: ImageEnhance.Brightness, CONTRAST: ImageEnhance.Contrast}
            image = enhance.get(kind, ImageEnhance.Color)(image).enhance(factor)
    if view.gray:
        grey = image.convert("L")
        image = Image.merge("RGB", (grey, grey, grey))
    pixels = _convolved(np.array(image), view.sigma) if view.sigma is not None else np.array(image)
    return np.array(ImageOps.solarize(Image.fromarray(pixels), 128)) if view.solarize else pixels


def _convolved(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """GaussianBlur(9): the image as floats, padded by reflection, one depthwise 9 x 9 convolution, rounded back."""
    taps = torch.exp(-0.5 * (torch.linspace(-4, 4, 9) / sigma) ** 2)
    taps = taps / taps.sum()
    kernel = torch.outer(taps, taps).expand(3, 1, 9, 9)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous().float()
    blurred = F.conv2d(F.pad(planes, (4, 4, 4, 4), mode="reflect"), kernel, groups=3)
    return blurred.round_().to(torch.uint8)[0].permute(1, 2, 0).contiguous().numpy()


def _torchvision(config: MultiCropConfig) -> Callable[[Any], object] | None:
    T: Any = torchvision_module("torchvision.transforms.v2")
    if T is None:
        return None

    def view(side: int, scale: tuple[float, float], blur: float, solarize: float) -> Any:
        return T.Compose(
            [
                T.RandomResizedCrop(side, scale, config.ratio, interpolation=T.InterpolationMode.BICUBIC),
                T.RandomHorizontalFlip(config.flip),
                T.RandomApply([T.ColorJitter(*config.jitter)], config.jitter_probability),
                T.RandomGrayscale(config.gray),
                T.RandomApply([T.GaussianBlur(9, (0.1, 2.0))], blur),
                T.RandomSolarize(128, solarize),
            ]
        )

    first = view(config.global_size, config.global_scale, config.blurs[0], 0.0)
    second = view(config.global_size, config.global_scale, config.blurs[1], config.solarize)
    local = view(config.local_size, config.local_scale, config.blurs[2], 0.0)
    views = [first, second] + [local] * config.local_crops
    return lambda picture: [make(picture) for make in views]


def _difference(photograph: np.ndarray) -> str:
    """The largest and the mean difference of our resize to Pillow's, over many boxes."""
    image = _pillow()
    make = MultiCrop(MultiCropConfig())
    largest, total, count = 0, 0, 0
    for i in range(20):
        for view in make.draw(HEIGHT, WIDTH, np.random.default_rng(i)):
            cut = _cut(photograph, view)
            ours = resize(cut, 96).astype(int)
            across = image.fromarray(cut).resize((96, cut.shape[0]), image.Resampling.BICUBIC)
            off = np.abs(ours - np.array(across.resize((96, 96), image.Resampling.BICUBIC)))
            largest, total, count = max(largest, int(off.max())), total + int(off.sum()), count + off.size
    return (
        f"resize beside Pillow's two passes, horizontal first, over 200 boxes: at most {largest} grey level(s), "
        f"{total / count:.4f} on average (Pillow 13 takes the vertical pass first where that is cheaper)"
    )


def _cut(photograph: np.ndarray, view: View) -> np.ndarray:
    top, left, height, width = view.box
    return np.ascontiguousarray(photograph[top : top + height, left : left + width])


def _photograph() -> np.ndarray:
    image = _pillow()
    coffee = image.fromarray(read_image(fetch("scikit-image") / "coffee.png"))
    return np.array(coffee.resize((WIDTH, HEIGHT), image.Resampling.LANCZOS))


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", "vision", "it is the other side of this comparison") from error
    return Image

"""Image preprocessing, photographs to network input: bounded reading, antialiased resize, the checkpoint's own mean and
standard deviation.

    x = load_image("cat.jpg", size=512, config=model.config)      # (3, h, w), sides multiples of the patch
    model(x[None])
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tenfold.config import require
from tenfold.data.readers import SUFFIXES, read_image
from tenfold.images.resize import resize
from tenfold.vision.backbones.backbone import BackboneConfig
from tenfold.vision.backbones.vit import VitConfig


def normalize(images: UInt8[Tensor, "*b h w 3"], config: BackboneConfig) -> Float[Tensor, "*b 3 h w"]:
    """Grey levels 0..255 to the network's input, with the mean and standard deviation that the weights were trained with."""
    mean = torch.tensor(config.mean, device=images.device) * 255
    std = torch.tensor(config.std, device=images.device) * 255
    return ((images.float() - mean) / std).movedim(-1, -3).contiguous()


def fit(height: int, width: int, size: int | None, patch: int) -> tuple[int, int]:
    """Height and width for the network: the shorter side becomes `size` (as it is with None), both are rounded to
    multiples of the patch, and neither is below one patch."""
    scale = 1.0 if size is None else size / min(height, width)
    rounded = [max(patch, round(side * scale / patch) * patch) for side in (height, width)]
    return rounded[0], rounded[1]


def open_image(path: Path | str, size: int | None, patch: int) -> UInt8[Tensor, "h w 3"]:
    """An image at network resolution, still in grey levels (what a picture is drawn beside)."""
    require(size is None or size >= patch, "size", size, f"at least one patch ({patch} pixels)")
    image = torch.from_numpy(read_image(Path(path)))
    return resize(image, *fit(image.shape[0], image.shape[1], size, patch))


def load_image(
    path: Path | str, size: int | None = None, config: BackboneConfig | None = None
) -> Float[Tensor, "3 h w"]:
    """One image, ready for a network of `config`. Raises DataError with the file's name when it cannot be read."""
    config = config or VitConfig()
    return normalize(open_image(path, size, config.patch_size), config)


def find_images(paths: tuple[Path, ...]) -> list[Path]:
    """The image files named, and those below the folders named, in sorted order."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        else:
            found.append(path)
    return found

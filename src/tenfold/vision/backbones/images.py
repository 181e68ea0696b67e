"""Image preprocessing, photographs to network input: bounded reading, antialiased resize, the checkpoint's own mean and
standard deviation.

    x = load_image("cat.jpg", size=512, config=model.config)      # (3, h, w), sides multiples of the patch
    model(x[None])
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tenfold.config import require
from tenfold.data.file_names import readable_name
from tenfold.data.folders import find_images as find_images
from tenfold.data.readers import read_image
from tenfold.errors import DataError
from tenfold.images.resize import resize
from tenfold.vision.backbones.backbone import BackboneConfig
from tenfold.vision.backbones.vit import VitConfig

LIMIT = 512  # pixels of the longer side, when no size is asked for
LONGEST = 4  # times as long as wide: a longer image is not enlarged to the size asked for


def normalize(images: UInt8[Tensor, "*b h w 3"], config: BackboneConfig) -> Float[Tensor, "*b 3 h w"]:
    """Grey levels 0..255 to the network's input, with the mean and standard deviation that the weights were trained with."""
    mean = torch.tensor(config.mean, device=images.device) * 255
    std = torch.tensor(config.std, device=images.device) * 255
    return ((images.float() - mean) / std).movedim(-1, -3).contiguous()


def fit(height: int, width: int, size: int | None, patch: int) -> tuple[int, int]:
    """Height and width for the network, rounded to multiples of the patch, neither below one patch.

    The shorter side becomes `size`, or less for an image longer than LONGEST to 1, so that the area stays below LONGEST
    squares of that side. With None the image is as it is, at most LIMIT on its longer side.
    """
    if size is None:
        scale = min(1.0, LIMIT / max(height, width))
    else:
        area = LONGEST * size**2
        scale = min(size / min(height, width), math.sqrt(area / (height * width)), area / patch / max(height, width))
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


def open_readable(
    files: Sequence[Path], size: int | None, patch: int, failures: list[str]
) -> Iterator[tuple[Path, UInt8[Tensor, "h w 3"]]]:
    """The images that can be read, one at a time; why the others cannot goes to `failures`."""
    for file in files:
        try:
            image = open_image(file, size, patch)
        except DataError as error:
            failures.append(readable_name(str(error)))
            continue
        yield file, image

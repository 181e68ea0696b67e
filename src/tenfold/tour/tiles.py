"""The question of the tour's self-supervised training: k-NN from tiles in changed colours to the photograph that they are from.

    write_tiles(photographs, out)          out/train/PHOTOGRAPH/*.png and out/val/PHOTOGRAPH/*.png

A network that was trained to give two views of an image the same features should know a tile again whose colours are
swapped and whose light is changed; raw pixels do not, and untrained features only a little. Training tiles are from the left
three quarters of each photograph, unchanged; those that are asked for are from the right quarter, mirrored, in other colours.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tenfold.data.readers import read_image
from tenfold.errors import MissingExtra
from tenfold.vision.pretraining.photographs import HELD_BACK, TILE

STRIDE = 48  # pixels between training tiles; those held back do not overlap
TRAIN, HELD = 80, 6  # tiles of a photograph at most, so that no photograph is the answer to most questions
# Order of the channels, contrast and brightness of each version of a tile that is asked for.
CHANGES = (
    ((1, 2, 0), 0.6, 1.15),
    ((2, 0, 1), 1.4, 0.75),
    ((0, 2, 1), 0.6, 0.75),
    ((2, 1, 0), 1.4, 1.15),
    ((1, 0, 2), 0.8, 0.6),
)


def write_tiles(photographs: Sequence[Path], out: Path) -> tuple[Path, Path]:
    """Writes both sets, a folder for each photograph (what was there is replaced), and returns their folders."""
    shutil.rmtree(out, ignore_errors=True)
    for file in photographs:
        image = read_image(file)
        border = int(image.shape[1] * (1 - HELD_BACK))
        train = cut(image[:, :border], STRIDE, TRAIN)
        held = [change(tile, *how) for tile in cut(image[:, border:], TILE, HELD) for how in CHANGES]
        for name, tiles in (("train", train), ("val", held)):
            folder = out / name / file.stem
            folder.mkdir(parents=True)
            for number, tile in enumerate(tiles):
                save(tile, folder / f"{number:03}.png")
    return out / "train", out / "val"


def cut(image: np.ndarray, stride: int, most: int) -> list[np.ndarray]:
    """Square tiles in rows, at most so many, spread over the image."""
    height, width = image.shape[:2]
    corners = [(y, x) for y in range(0, height - TILE + 1, stride) for x in range(0, width - TILE + 1, stride)]
    chosen = np.linspace(0, len(corners) - 1, min(most, len(corners))).round().astype(int)
    return [image[y : y + TILE, x : x + TILE] for y, x in (corners[i] for i in chosen)]


def change(tile: np.ndarray, order: Sequence[int], contrast: float, brightness: float) -> np.ndarray:
    """The mirrored tile with its channels in another order, in another light."""
    pixels = tile[:, ::-1, list(order)].astype(np.float32)
    mean = pixels.mean()
    return np.clip((pixels - mean) * contrast + mean * brightness, 0, 255).round().astype(np.uint8)


def most_frequent(folder: Path) -> float:
    """Per cent right of always answering with the photograph that has the most tiles in the folder."""
    counts = [len(list(photograph.iterdir())) for photograph in folder.iterdir()]
    return 100 * max(counts) / sum(counts)


def save(tile: np.ndarray, path: Path) -> None:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", "vision", "it writes pictures") from error
    Image.fromarray(np.ascontiguousarray(tile)).save(path, compress_level=1)

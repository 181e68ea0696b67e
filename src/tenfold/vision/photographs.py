"""The images of a pretraining run: decoded once, kept small in memory, cut into crops by the loader, scored by k-NN.

    photographs = open_photographs(data, val, side=64)
    loader = photographs.batches(crops=..., batch=64, seed=0, shard=Shard())
    photographs.floor(k=20)                                       k-NN on raw pixels, per cent
    photographs.knn(embed, config, side=48, k=20)                 k-NN on embed's features, per cent

Without data of the user's own, the photographs of the scikit-image sample are cut into tiles; the right quarter of each
is held back, and a tile's label is the photograph that it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tenfold.data.loader import Loader
from tenfold.data.readers import read_image
from tenfold.data.sources import InMemory, Sample, open_source
from tenfold.engine.task import Shard
from tenfold.errors import DataError
from tenfold.vision.crops import Crops, MultiCrop, MultiCropConfig, collate_crops
from tenfold.vision.images import SUFFIXES, normalize
from tenfold.vision.probe import knn_accuracy, pixel_features
from tenfold.vision.vit import VitConfig

TILE, STRIDE, HELD_BACK = 96, 32, 0.25  # pixels, pixels, share of a photograph's width


class TileSource:
    """Overlapping tiles of whole photographs; `held_back` takes the right part of each, which no training tile touches."""

    def __init__(self, files: Sequence[Path], held_back: bool) -> None:
        self.classes = tuple(file.stem for file in files)
        self._tiles: list[Sample] = []
        for label, file in enumerate(files):
            image = read_image(file)
            border = int(image.shape[1] * (1 - HELD_BACK))
            part = image[:, border:] if held_back else image[:, :border]
            stride = TILE if held_back else STRIDE
            for top in range(0, part.shape[0] - TILE + 1, stride):
                for left in range(0, part.shape[1] - TILE + 1, stride):
                    tile = np.ascontiguousarray(part[top : top + TILE, left : left + TILE])
                    self._tiles.append(Sample(tile, label, f"{file.name}[{top}:{top + TILE}, {left}:{left + TILE}]"))
        self.labels = np.array([tile.label for tile in self._tiles], np.int64)

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> Sample:
        return self._tiles[index]


@dataclass(frozen=True)
class Photographs:
    """Training images, and labelled ones for the k-NN curve (None without labels). `name` says what they are."""

    name: str
    train: InMemory
    val: InMemory | None

    def batches(
        self, crops: MultiCropConfig, batch: int, seed: int, shard: Shard, error_rate: float, workers: int
    ) -> Loader:
        """The endless stream of crops of this rank: {"global_crops": uint8 (G, B, 3, h, w), "local_crops": ...}."""
        return Loader(
            self.train,
            MultiCrop(crops).loader_transform,
            batch,
            seed=seed,
            rank=shard.rank,
            world=shard.world,
            workers=workers,
            collate=_Stack(crops.global_crops, crops.local_crops),
            error_rate=error_rate,
        )

    def floor(self, k: int, rows: int | None = None) -> float | None:
        """k-NN on raw pixels (16 x 16 means of the original images), per cent; None without labels."""
        if self.val is None or self.train.labels is None:
            return None
        features = [pixel_features(torch.from_numpy(part.thumbnails[:rows])) for part in (self.train, self.val)]
        return self._score(features[0], features[1], k, rows)

    def knn(
        self,
        embed: Callable[[Tensor], Tensor],
        config: VitConfig,
        side: int,
        k: int,
        rows: int | None = None,
        batch: int = 256,
    ) -> float | None:
        """k-NN on `embed(images (n, 3, side, side)) -> (n, d)`, per cent; None without labels."""
        if self.val is None or self.train.labels is None:
            return None
        features = []
        for part in (self.train, self.val):
            images = torch.from_numpy(part.images[:rows])
            features.append(torch.cat([embed(_at_side(chunk, side, config)) for chunk in images.split(batch)]).cpu())
        return self._score(features[0], features[1], k, rows)

    def _score(self, train: Tensor, val: Tensor, k: int, rows: int | None) -> float:
        assert self.val is not None
        labels = [torch.from_numpy(side.labels[:rows]) for side in (self.train, self.val) if side.labels is not None]
        return knn_accuracy(train.float(), labels[0], val.float(), labels[1], k)


def open_photographs(data: Path | None, val: Path | None, side: int, error_rate: float = 0.01) -> Photographs:
    """The user's images, or tiles of the sample photographs when there are none."""
    if data is None:
        from tenfold.data.samples import fetch

        folder = fetch("scikit-image")
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and "motorcycle" not in p.name)
        train, held = TileSource(files, held_back=False), TileSource(files, held_back=True)
        return Photographs(f"tiles of {len(files)} sample photographs", InMemory(train, side), InMemory(held, side))
    source = open_source(data)
    train_images = InMemory(source, side, error_rate)
    if val is None:
        return Photographs(str(data), train_images, None)
    val_source = open_source(val)
    if val_source.labels is None or source.labels is None:
        raise DataError(
            f"{val if val_source.labels is None else data} has no labels, and k-NN needs them in both sets."
        )
    if val_source.classes != source.classes:
        raise DataError(
            f"the classes of {val} ({len(val_source.classes)}) are not those of {data} ({len(source.classes)})."
        )
    return Photographs(str(data), train_images, InMemory(val_source, side, error_rate))


class _Stack:
    """Collates crops into plain tensors, one axis for the view and one for the image."""

    def __init__(self, n_global: int, n_local: int) -> None:
        self.n_global, self.n_local = n_global, n_local

    def __call__(self, items: list[Crops]) -> dict[str, Any]:
        batch = collate_crops(items)
        stacked = {"global_crops": batch.global_crops.unflatten(0, (self.n_global, len(items)))}
        if batch.local_crops is not None:
            stacked["local_crops"] = batch.local_crops.unflatten(0, (self.n_local, len(items)))
        return stacked


def _at_side(images: Tensor, side: int, config: VitConfig) -> Float[Tensor, "n 3 side side"]:
    if images.shape[1] == side:
        return normalize(images, config)
    planes = F.interpolate(images.permute(0, 3, 1, 2), size=(side, side), mode="bicubic", antialias=True)
    return normalize(planes.permute(0, 2, 3, 1), config)

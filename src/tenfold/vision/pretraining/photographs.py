"""The image data set of a pretraining run: decoded once, kept small in memory, cut into crops by the loader, scored by k-NN.

    photographs = open_photographs(data, val, side=64, eval_side=48)
    loader = photographs.batches(crops=..., batch=64, seed=0, shard=Shard())
    photographs.floor(k=20)                                       k-NN on raw pixels, per cent
    photographs.knn(embed, config, side=48, k=20)                 k-NN on embed's features, per cent

Without data of the user's own, the photographs of the scikit-image sample are cut into tiles; the right quarter of each
is held back, and a tile's label is the photograph that it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from tenfold.data.sample import Sample
from tenfold.data.sources import InMemory, Source, open_source
from tenfold.engine.task import Shard
from tenfold.errors import DataError
from tenfold.vision.backbones.backbone import BackboneConfig
from tenfold.vision.backbones.images import find_images, normalize
from tenfold.vision.pretraining.crops import Crops, MultiCrop, MultiCropConfig, collate_crops
from tenfold.vision.probes.probe import knn_accuracy, pixel_features

TILE, STRIDE, HELD_BACK = 96, 32, 0.25  # pixels, pixels, share of a photograph's width
BANK = 20_000  # images of the k-NN bank when the training set is not kept in memory


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


class Subset:
    """`rows` images of a source, chosen at random but always the same (a prefix of a folder would be its first class)."""

    def __init__(self, source: Source, rows: int) -> None:
        self._source = source
        self._chosen = np.sort(np.random.default_rng(0).permutation(len(source))[:rows])
        self.classes = source.classes
        self.labels = None if source.labels is None else source.labels[self._chosen]

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Sample:
        return self._source[int(self._chosen[index])]


@dataclass(frozen=True)
class Photographs:
    """Training images, and two labelled sets for k-NN: `bank` of training images and `val` (None without labels)."""

    name: str
    train: Source
    bank: InMemory | None
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

    def floor(self, k: int) -> float | None:
        """k-NN on raw pixels (16 x 16 means of the original images), per cent; None without labels."""
        return self._score(lambda part: pixel_features(torch.from_numpy(part.thumbnails)), k)

    def knn(
        self, embed: Callable[[Tensor], Tensor], config: BackboneConfig, side: int, k: int, batch: int = 256
    ) -> float | None:
        """k-NN on `embed(images (n, 3, side, side)) -> (n, d)`, per cent; None without labels."""

        def features(part: InMemory) -> Tensor:
            chunks = torch.from_numpy(part.images).split(batch)
            return torch.cat([embed(_at_side(chunk, side, config)) for chunk in chunks]).cpu().float()

        return self._score(features, k)

    def labels(self) -> tuple[Tensor, Tensor]:
        """Classes of the bank (N,) and of val (M,)."""
        assert self.bank is not None
        assert self.val is not None
        assert self.bank.labels is not None
        assert self.val.labels is not None
        return torch.from_numpy(self.bank.labels), torch.from_numpy(self.val.labels)

    def _score(self, features: Callable[[InMemory], Tensor], k: int) -> float | None:
        if self.bank is None or self.val is None:
            return None
        bank_labels, labels = self.labels()
        return knn_accuracy(features(self.bank), bank_labels, features(self.val), labels, k)


def open_photographs(
    data: Path | None,
    val: Path | None,
    side: int | None,
    eval_side: int,
    rows: int | None = None,
    error_rate: float = 0.01,
) -> Photographs:
    """The user's images, or tiles of the sample photographs when there are none.

    side: training images are decoded once and kept at this side; None decodes each when drawn, for sets that memory does not
    hold (k-NN then takes at most 20,000 of them). eval_side: the side of images that are scored, when they are not kept
    already. rows: k-NN uses at most so many of each set.
    """
    if data is None:
        from tenfold.data.samples import fetch

        folder = fetch("scikit-image")
        files = [p for p in find_images((folder,)) if "motorcycle" not in p.name]
        source: Source = TileSource(files, held_back=False)
        held: Source | None = TileSource(files, held_back=True)
        name = f"tiles of {len(files)} sample photographs"
    else:
        source, name = open_source(data), str(data)
        held = _matching(open_source(val), val, source, data) if val is not None else None

    def kept(part: Source, most: int | None) -> InMemory:
        chosen = part if most is None or most >= len(part) else Subset(part, most)
        return InMemory(chosen, side or eval_side, error_rate)

    if held is None:
        return Photographs(name, kept(source, None) if side else source, None, None)
    if side is None:
        return Photographs(name, source, kept(source, rows or BANK), kept(held, rows))
    train = kept(source, None)
    bank = train if rows is None or rows >= len(source) else kept(source, rows)
    return Photographs(name, train, bank, kept(held, rows))


def _matching(held: Source, val: Path | None, source: Source, data: Path) -> Source:
    if held.labels is None or source.labels is None:
        raise DataError(f"{val if held.labels is None else data} has no labels, and k-NN needs them in both sets.")
    if held.classes != source.classes:
        raise DataError(f"the classes of {val} ({len(held.classes)}) are not those of {data} ({len(source.classes)}).")
    return held


class _Stack:
    """Collates crops into plain tensors, one axis for the view and one for the image."""

    def __init__(self, n_global: int, n_local: int) -> None:
        self.n_global, self.n_local = n_global, n_local

    def __call__(self, items: list[Crops]) -> dict[str, Any]:
        batch = collate_crops(items)
        stacked = {"global_crops": batch.global_crops.unflatten(0, (self.n_global, len(items)))}
        if batch.local_crops is not None:
            stacked["local_crops"] = batch.local_crops.unflatten(0, (self.n_local, len(items)))
        if batch.gram_crops is not None:
            stacked["gram_crops"] = batch.gram_crops.unflatten(0, (self.n_global, len(items)))
        return stacked


class Mixed:
    """Batches of one loader or another, drawn for each by (seed, number of the batch); alike on every rank."""

    def __init__(self, loaders: Sequence[Loader], probabilities: Sequence[float], seed: int) -> None:
        self._loaders, self._seed, self._number = list(loaders), seed, 0
        self._probabilities = np.array(probabilities) / sum(probabilities)

    def __iter__(self) -> Iterator[Any]:
        streams = [iter(loader) for loader in self._loaders]
        while True:
            generator = np.random.default_rng((self._seed, self._number))
            chosen = int(generator.choice(len(streams), p=self._probabilities))
            self._number += 1
            yield next(streams[chosen])

    def state_dict(self) -> dict[str, Any]:
        return {"number": self._number, "loaders": [loader.state_dict() for loader in self._loaders]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._number = state["number"]
        for loader, saved in zip(self._loaders, state["loaders"], strict=True):
            loader.load_state_dict(saved)


def _at_side(images: Tensor, side: int, config: BackboneConfig) -> Float[Tensor, "n 3 side side"]:
    if images.shape[1] == side:
        return normalize(images, config)
    planes = F.interpolate(images.permute(0, 3, 1, 2), size=(side, side), mode="bicubic", antialias=True)
    return normalize(planes.permute(0, 2, 3, 1), config)

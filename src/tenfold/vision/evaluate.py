"""`tenfold eval knn | linear`: frozen features on labelled images, beside raw pixels and the same network untrained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tenfold.data.sources import InMemory
from tenfold.vision.commands import model_of
from tenfold.vision.images import normalize
from tenfold.vision.photographs import open_photographs
from tenfold.vision.probe import knn_accuracy, linear_probe, pixel_features
from tenfold.vision.vit import VisionTransformer

KS = (10, 20, 100, 200)


class Options(Protocol):
    """What the command line hands over (see tenfold.commands.Evaluate)."""

    weights: Path
    train: Path
    val: Path
    limit: int | None
    size: int | None


def knn(options: Options) -> dict[str, Any]:
    """Weighted k-NN, per cent right, for each k; the floors at the same k."""
    sets, labels = _features(options)
    rows: dict[str, Any] = {"train images": len(labels[0]), "val images": len(labels[1])}
    for k in KS:
        if k <= len(labels[0]):
            for name, (train, val) in sets.items():
                rows[f"k-NN {k}, {name}"] = knn_accuracy(train, labels[0], val, labels[1], k)
    return rows


def linear(options: Options) -> dict[str, Any]:
    """Linear probe, per cent right; the learning rate is chosen on a slice of the training rows."""
    sets, labels = _features(options)
    rows: dict[str, Any] = {"train images": len(labels[0]), "val images": len(labels[1])}
    for name, (train, val) in sets.items():
        rows[f"linear, {name}"] = linear_probe(train, labels[0], val, labels[1])["linear"]
    return rows


def _features(options: Options) -> tuple[dict[str, tuple[Tensor, Tensor]], list[Tensor]]:
    model = model_of(options.weights)
    side = options.size or 224
    side = max(1, side // model.config.patch_size) * model.config.patch_size
    photographs = open_photographs(options.train, options.val, side)
    assert photographs.val is not None
    parts = (photographs.train, photographs.val)
    labels = [torch.from_numpy(part.labels[: options.limit]) for part in parts if part.labels is not None]
    torch.manual_seed(0)
    untrained = VisionTransformer(model.config).eval()
    sets = {
        name: (_embed(network, parts[0], options.limit), _embed(network, parts[1], options.limit))
        for name, network in (("these weights", model), ("untrained", untrained))
    }
    pixels = [pixel_features(torch.from_numpy(part.thumbnails[: options.limit])) for part in parts]
    return {**sets, "raw pixels": (pixels[0], pixels[1])}, labels


@torch.inference_mode()
def _embed(model: VisionTransformer, images: InMemory, limit: int | None, batch: int = 32) -> Tensor:
    """[CLS ; mean patch] of every image."""
    rows = []
    for chunk in torch.from_numpy(images.images[:limit]).split(batch):
        output = model(normalize(chunk, model.config))
        rows.append(torch.cat([output.cls_token, output.patch_tokens.flatten(1, 2).mean(1)], dim=1).float())
    return torch.cat(rows)

"""`tenfold eval knn | linear`: frozen features on labelled images, beside raw pixels and the same network untrained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tenfold.data.sources import InMemory
from tenfold.vision.commands import model_of
from tenfold.vision.images import normalize
from tenfold.vision.photographs import open_photographs
from tenfold.vision.probe import knn_accuracy, linear_probe, pixel_features
from tenfold.vision.vit import VisionOutput, VisionTransformer

KS = (10, 20, 100, 200)
Summary = Callable[[VisionTransformer, VisionOutput], Tensor]


@runtime_checkable
class Options(Protocol):
    """What the command line hands over (see tenfold.commands.Evaluate)."""

    weights: Path
    train: Path
    val: Path
    limit: int | None
    size: int | None


def knn(options: Options) -> dict[str, Any]:
    """Weighted k-NN on what stands for an image (CLS, or the mean patch where the model says so), per cent right, for each
    k; the floors at the same k."""
    sets, labels = _features(options, VisionTransformer.feature)
    rows: dict[str, Any] = {"train images": len(labels[0]), "val images": len(labels[1])}
    for k in KS:
        if k <= len(labels[0]):
            for name, (train, val) in sets.items():
                rows[f"k-NN {k}, {name}"] = knn_accuracy(train, labels[0], val, labels[1], k)
    return rows


def linear(options: Options) -> dict[str, Any]:
    """Linear probe on [CLS ; mean patch], per cent right; the learning rate is chosen on a slice of the training rows."""
    sets, labels = _features(options, _both)
    rows: dict[str, Any] = {"train images": len(labels[0]), "val images": len(labels[1])}
    for name, (train, val) in sets.items():
        rows[f"linear, {name}"] = linear_probe(train, labels[0], val, labels[1])["linear"]
    return rows


def _features(options: Options, summary: Summary) -> tuple[dict[str, tuple[Tensor, Tensor]], list[Tensor]]:
    model = model_of(options.weights).for_inference()
    patch = model.config.patch_size
    side = max(1, (options.size or model.config.image_size) // patch) * patch
    photographs = open_photographs(options.train, options.val, None, side, options.limit)
    assert photographs.bank is not None
    assert photographs.val is not None
    parts = (photographs.bank, photographs.val)
    torch.manual_seed(0)
    untrained = VisionTransformer(model.config).for_inference()
    sets = {
        name: (_embed(network, parts[0], summary), _embed(network, parts[1], summary))
        for name, network in (("these weights", model), ("untrained", untrained))
    }
    pixels = [pixel_features(torch.from_numpy(part.thumbnails)) for part in parts]
    return {**sets, "raw pixels": (pixels[0], pixels[1])}, list(photographs.labels())


def _both(model: VisionTransformer, output: VisionOutput) -> Tensor:
    """[CLS ; mean patch], what linear probes take (DINOv2, arXiv 2304.07193, section 7.1)."""
    return torch.cat([output.cls_token, output.patch_tokens.flatten(1, 2).mean(1)], dim=1)


@torch.inference_mode()
def _embed(model: VisionTransformer, images: InMemory, summary: Summary, batch: int = 32) -> Tensor:
    rows = []
    for chunk in torch.from_numpy(images.images).split(batch):
        rows.append(summary(model, model(normalize(chunk, model.config))).float())
    return torch.cat(rows)

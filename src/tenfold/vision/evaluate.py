"""`tenfold eval knn | linear | attentive | retrieval`: frozen features on labelled images, beside raw pixels and the same
network untrained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from tenfold.data.sources import InMemory
from tenfold.vision.backbones.backbone import Backbone, VisionOutput, model_of
from tenfold.vision.backbones.images import normalize
from tenfold.vision.pretraining.photographs import open_photographs
from tenfold.vision.probes.probe import attentive_probe, knn_accuracy, linear_probe, pixel_features, retrieval_map

KS = (10, 20, 100, 200)
Summary = Callable[[Backbone, VisionOutput], Tensor]


@dataclass(frozen=True)
class LabelledImages:
    """Scores frozen features on labelled images, beside raw pixels and the same network untrained.

    Images are a parquet (columns image, label), a tar, or a folder with one subfolder per class.
    """

    weights: tyro.conf.Positional[Path]  # a backbone that tenfold.load reads, or a run folder
    train: Path  # labelled images: the neighbours, the gallery, or what a probe is trained on
    val: Path  # labelled images that are scored, with the same classes
    limit: int | None = None  # use only the first rows of each set
    size: int | None = None  # side of the images in pixels; the weights' own by default
    json: bool = False  # print as JSON


@dataclass(frozen=True)
class AttentiveImages(LabelledImages):
    """Scores an attentive probe on frozen patch tokens of labelled images, beside raw pixels and the untrained network."""

    epochs: int = 20  # passes over the training set


def knn(options: LabelledImages) -> dict[str, Any]:
    """Weighted k-NN on the feature of an image (CLS, or the mean patch where the model says so), per cent right, for each
    k; the baselines at the same k."""
    sets, labels = _features(options, _whole)
    rows: dict[str, Any] = {"train images": len(labels[0]), "val images": len(labels[1])}
    for k in KS:
        if k <= len(labels[0]):
            for name, (train, val) in sets.items():
                rows[f"k-NN {k}, {name}"] = knn_accuracy(train, labels[0], val, labels[1], k)
    return rows


def linear(options: LabelledImages) -> dict[str, Any]:
    """Linear probe on [CLS ; mean patch], per cent right; the learning rate is chosen on a slice of the training rows."""
    sets, labels = _features(options, _both)
    rows: dict[str, Any] = {"train images": len(labels[0]), "val images": len(labels[1])}
    for name, (train, val) in sets.items():
        rows[f"linear, {name}"] = linear_probe(train, labels[0], val, labels[1])["linear"]
    return rows


def attentive(options: AttentiveImages) -> dict[str, Any]:
    """Attentive probe on all patch tokens, per cent right; the baseline attends to raw 8 x 8 pixel squares."""
    networks, parts, labels = _open(options)
    rows: dict[str, Any] = {"train images": len(labels[0]), "val images": len(labels[1])}
    sets = {name: [embed(network, part, _tokens) for part in parts] for name, network in networks.items()}
    sets["raw pixels"] = [_squares(part) for part in parts]
    for name, (bank, queries) in sets.items():
        score = attentive_probe(bank, labels[0], queries, labels[1], options.epochs)
        rows[f"attentive, {name}"] = score["attentive"]
    return rows


def retrieval(options: LabelledImages) -> dict[str, Any]:
    """Mean average precision, per cent: every val image asks for the train images of its class."""
    sets, labels = _features(options, _whole)
    rows: dict[str, Any] = {"gallery images": len(labels[0]), "queries": len(labels[1])}
    for name, (gallery, queries) in sets.items():
        rows[f"mAP, {name}"] = retrieval_map(gallery, labels[0], queries, labels[1])
    share = torch.bincount(labels[0]).double() / len(labels[0])
    rows["mAP, random order"] = 100 * share[labels[1]].mean().item()
    return rows


def _features(options: LabelledImages, summary: Summary) -> tuple[dict[str, tuple[Tensor, Tensor]], list[Tensor]]:
    networks, parts, labels = _open(options)
    sets = {name: (embed(n, parts[0], summary), embed(n, parts[1], summary)) for name, n in networks.items()}
    pixels = [pixel_features(torch.from_numpy(part.thumbnails)) for part in parts]
    return {**sets, "raw pixels": (pixels[0], pixels[1])}, labels


def _open(options: LabelledImages) -> tuple[dict[str, Backbone], tuple[InMemory, InMemory], list[Tensor]]:
    model = model_of(options.weights).for_inference()
    patch = model.config.patch_size
    side = max(1, (options.size or model.config.image_size) // patch) * patch
    photographs = open_photographs(options.train, options.val, None, side, options.limit)
    assert photographs.bank is not None
    assert photographs.val is not None
    torch.manual_seed(0)
    untrained = model.config.build().for_inference()
    networks = {"these weights": model, "untrained": untrained}
    return networks, (photographs.bank, photographs.val), list(photographs.labels())


def _whole(model: Backbone, output: VisionOutput) -> Tensor:
    """The feature of the whole image."""
    return model.feature(output)


def _both(model: Backbone, output: VisionOutput) -> Tensor:
    """[CLS ; mean patch], what linear probes take (DINOv2, arXiv 2304.07193, section 7.1)."""
    return torch.cat([output.cls_token, output.patch_tokens.flatten(1, 2).mean(1)], dim=1)


def _tokens(model: Backbone, output: VisionOutput) -> Tensor:
    """(B, 1 + P, D): the CLS token and every patch."""
    return torch.cat([output.cls_token[:, None], output.patch_tokens.flatten(1, 2)], dim=1)


def _squares(part: InMemory, side: int = 8) -> Tensor:
    """(n, P, 3 * side * side): the image's squares in grey levels of [-1, 1], in the order of the patches."""
    rows = []
    for chunk in torch.from_numpy(part.images).split(256):
        planes = chunk.permute(0, 3, 1, 2).float() / 127.5 - 1
        rows.append(F.unfold(planes, side, stride=side).transpose(1, 2))
    return torch.cat(rows)


@torch.inference_mode()
def embed(model: Backbone, images: InMemory, summary: Summary, batch: int = 32) -> Tensor:
    rows = []
    for chunk in torch.from_numpy(images.images).split(batch):
        rows.append(summary(model, model(normalize(chunk, model.config))).float())
    return torch.cat(rows)

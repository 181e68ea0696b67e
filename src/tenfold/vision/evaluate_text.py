"""`tenfold eval zeroshot`: classes named only by sentences, beside chance, an untrained head and the linear probe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from tenfold.data.sources import InMemory, open_source
from tenfold.errors import DataError, UsageError
from tenfold.export.weights import load
from tenfold.vision.backbones.backbone import VisionOutput
from tenfold.vision.evaluate import embed
from tenfold.vision.pretraining.photographs import Subset
from tenfold.vision.probes.probe import linear_probe
from tenfold.vision.text.aligned import TextAligned
from tenfold.vision.text.captions import templates
from tenfold.vision.text.zeroshot import class_vectors, image_vectors, read_descriptions


@dataclass(frozen=True)
class ZeroShot:
    """Classifies images by sentences about their classes, beside chance, the head before training and a linear probe.

    Images are a parquet (columns image, label), a tar, or a folder with one subfolder per class; classes are their names.
    """

    weights: tyro.conf.Positional[Path]  # a text-aligned model: a dino.txt file or a run of dinov3-text
    val: Path  # labelled images that are scored
    train: Path | None = None  # labelled images with the same classes: adds the linear probe, which is the ceiling
    limit: int | None = None  # use only the first rows of each set
    size: int | None = None  # side of the images in pixels; the backbone's own by default
    backbone: Path | None = None  # the backbone of a dino.txt file, which comes without
    descriptions: Path | None = None  # JSON from class names to lists of descriptions
    json: bool = False  # print as JSON


def zeroshot(options: ZeroShot) -> dict[str, Any]:
    """Per cent right with the templates of training, with others, and with --descriptions; every class's own share. Baselines:
    the most frequent class, and the same model before training. With --train the linear probe on its backbone is the
    ceiling. Nothing is chosen on --val."""
    model = aligned_of(options.weights, options.backbone)
    assert model.backbone is not None
    patch = model.backbone.config.patch_size
    side = max(1, (options.size or model.backbone.config.image_size) // patch) * patch
    images = _labelled(options.val, side, options.limit)
    assert images.labels is not None
    names, labels = images.classes, torch.from_numpy(images.labels)
    vectors = image_vectors(model, images.images)
    rows: dict[str, Any] = {"val images": len(labels), "classes": len(names)}
    for part in ("seen", "unseen"):
        rows[f"zero-shot, {part} templates"], own = _score(
            vectors, class_vectors(model, names, templates(part)), labels
        )
    rows |= {f"  {name}": share for name, share in zip(names, own)}
    if options.descriptions is not None:
        described = read_descriptions(options.descriptions, names)
        by_description = class_vectors(model, names, templates("unseen"), described)
        rows["zero-shot, descriptions"] = _score(vectors, by_description, labels)[0]
        plain = class_vectors(model, names, ["{}"])
        alone = class_vectors(model, names, ["{}"], described)
        nearest = (alone @ plain.T).argmax(1) == torch.arange(len(names))
        rows["descriptions nearest to their own name, of text alone"] = 100.0 * nearest.double().mean().item()
    rows["most frequent class"] = 100.0 * labels.bincount().max().item() / len(labels)
    untrained = _untrained(model)
    rows["zero-shot, head before training"] = _score(
        image_vectors(untrained, images.images), class_vectors(untrained, names, templates("unseen")), labels
    )[0]
    if options.train is not None:
        train = _labelled(options.train, side, options.limit)
        if train.classes != names:
            raise DataError(f"the classes of {options.val} are not those of {options.train}.")
        assert train.labels is not None
        network = model.backbone.for_inference()
        bank, queries = (embed(network, part, _both) for part in (train, images))
        rows["linear probe on the backbone, labelled"] = linear_probe(
            bank, torch.from_numpy(train.labels), queries, labels
        )["linear"]
    return rows


def aligned_of(weights: Path, backbone: Path | None) -> TextAligned:
    """The text-aligned model in `weights`, with its backbone."""
    model = load(weights)
    if not isinstance(model, TextAligned):
        raise UsageError(
            f"{weights} holds a {type(model).__name__}, which knows no words. Make one that does: "
            f"tenfold train dinov3-text --backbone {weights} --captions FILE"
        )
    if backbone is not None:
        model.attach(load(backbone))
    if model.backbone is None:
        raise UsageError(
            f"{weights} comes without its backbone, a vision transformer of width {model.config.dim}: add --backbone W."
        )
    return model.eval()


def _labelled(path: Path, side: int, limit: int | None) -> InMemory:
    source = open_source(path)
    if source.labels is None:
        raise DataError(f"{path} has no labels, and zero-shot accuracy needs them.")
    return InMemory(source if limit is None or limit >= len(source) else Subset(source, limit), side)


def _score(vectors: Tensor, classes: Tensor, labels: Tensor) -> tuple[float, list[float]]:
    """Per cent right of all, and of each class."""
    right = ((vectors @ classes.T).argmax(1) == labels).double()
    own = [100.0 * right[labels == i].mean().item() for i in range(len(classes))]
    return 100.0 * right.mean().item(), own


def _untrained(model: TextAligned) -> TextAligned:
    """The same backbone and text tower; head and projection as before training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = TextAligned(model.config)
    assert model.backbone is not None
    fresh.text_tower.load_state_dict(model.text_tower.state_dict())
    return fresh.attach(model.backbone).eval()


def _both(_: object, output: VisionOutput) -> Tensor:
    return torch.cat([output.cls_token, output.patch_tokens.flatten(1, 2).mean(1)], dim=1)

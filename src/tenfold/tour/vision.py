"""The tour's vision panels: a minute of self-supervised training with its k-NN scores, and PCA maps of patch features."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import torch

from tenfold.data.readers import read_image
from tenfold.engine.report import Report
from tenfold.engine.schedule import Schedule
from tenfold.errors import MissingExtra
from tenfold.tour.page import say
from tenfold.tour.runs import seconds_per_step, train
from tenfold.tour.tiles import CHANGES, most_frequent, write_tiles
from tenfold.vision.backbones.images import find_images, normalize, open_image

PHOTOGRAPHS = 6
SHIPPED = Path("dinov3-mini")  # the weights of that name that come with tenfold


def pretrain_panel(out: Path, photographs: Path, minutes: float) -> Report:
    """DINOv3 in small: self-supervised training on tiles of photographs, and whether it knows tiles again in other colours."""
    from tenfold.vision.evaluate import LabelledImages, knn
    from tenfold.vision.recipes import dinov3_mini

    files = [file for file in find_images((photographs,)) if "motorcycle" not in file.name]
    data, val = write_tiles(files, out / "tiles")
    recipe = dinov3_mini()
    # In a run of about a hundred steps the teacher has to follow its student sooner than in one of thousands.
    objective = dataclasses.replace(recipe.objective, momentum=Schedule("cosine", peak=0.9, final=1.0))
    recipe = dataclasses.replace(recipe, data=data, objective=objective)
    say("asking the trainer for its seconds per step")
    steps = max(30, round(minutes * 60 / seconds_per_step("dinov3-mini", recipe)))
    run = train("dinov3-mini", dataclasses.replace(recipe, val=val), out / "dinov3-mini", steps, validations=5)
    metrics, k = run.metrics, recipe.val_k
    shipped = knn(LabelledImages(weights=SHIPPED, train=data, val=val))[f"k-NN {k}, these weights"]
    untrained, pixels, frequent = metrics["knn_untrained"], metrics["knn_pixels"], most_frequent(val)
    report = Report("dinov3-mini")
    report.text(
        f"A 1.9 M parameter vision transformer learned from tiles of {len(files)} photographs without labels: {steps} steps "
        f"of {recipe.batch} tiles. The question put to its features: from which photograph is a tile of an unseen part, when "
        f"it is mirrored and its colours and light are changed? Self-supervised training makes views of one image alike, so it "
        f"should answer better than the same network untrained. The weights that come with tenfold saw other images "
        f"(imagenette) for 80 minutes of one core."
    )
    report.image("above tiles of training, below what is asked", png(question_picture(data, val)))
    report.table(
        f"tiles in changed colours, k-NN with k = {k}",
        [
            {"features": "the weights that come with tenfold", "per cent right": shipped},
            {"features": "after this training", "per cent right": metrics["knn"]},
            {"features": "baseline: the same network untrained", "per cent right": untrained},
            {"features": "baseline: raw pixels", "per cent right": pixels},
            {"features": "baseline: always the most frequent photograph", "per cent right": frequent},
        ],
    )
    if metrics["knn"] <= max(untrained, pixels):
        report.text("The training did not beat its baselines here: a longer run is needed (tenfold tour --minutes 10).")

    def level(value: float) -> list[tuple[float, float]]:
        return [(0, value), (steps, value)]

    report.plot(
        "k-NN while training",
        {
            "this training": [(0, untrained), *run.curve("knn")],
            "weights that come with tenfold": level(shipped),
            "untrained": level(untrained),
            "raw pixels": level(pixels),
            "most frequent photograph": level(frequent),
        },
        y="per cent right",
    )
    report.plot("loss", {"loss": run.curve("loss")}, y="nats")
    return report


def question_picture(data: Path, val: Path, columns: int = 5) -> torch.Tensor:
    """The most colourful photographs across: a training tile above, then an unseen tile as it is asked for."""
    across = []
    for folder in val.iterdir():
        train, held = sorted((data / folder.name).iterdir()), sorted(folder.iterdir())
        first = len(held) // 2 // len(CHANGES) * len(CHANGES)
        tiles = [torch.from_numpy(read_image(file)) for file in (train[len(train) // 2], *held[first : first + 3])]
        across.append((float(tiles[0].float().std(dim=2).mean()), folder.name, torch.cat(tiles, dim=0)))
    return torch.cat([column for *_, column in sorted(across, reverse=True)[:columns]], dim=1)


def features_panel(out: Path, photographs: Path) -> Report:
    """What the network just trained, and the one that ships, group together in whole photographs."""
    from tenfold.images.drawing import side_by_side
    from tenfold.vision.backbones.backbone import model_of
    from tenfold.vision.probes.correspond import beside, pca_map

    models = [model_of(weights) for weights in (out / "dinov3-mini", SHIPPED)]
    files = [f for f in find_images((photographs,)) if "motorcycle" not in f.name][:PHOTOGRAPHS]
    images = [open_image(file, 256, models[0].config.patch_size) for file in files]
    maps = []
    for model in models:
        with torch.inference_mode():
            tokens = [model(normalize(image, model.config)[None]).patch_tokens[0].clone() for image in images]
        maps.append(pca_map(tokens))
    report = Report("features")
    report.text(
        "Left the photograph, then its patch features in the network just trained, right in the weights that come with "
        "tenfold (dinov3-mini, the same network after 80 minutes of one core on imagenette): the first three principal "
        "components as red, green and blue. Patches that a network finds alike have like colours. Networks of this size "
        "group colour and texture; released weights (tenfold vision embed WEIGHTS photos/) group objects and their parts."
    )
    for file, image, trained, shipped in zip(files, images, *maps):
        pair = beside(image, trained), beside(image, shipped)[:, -image.shape[1] :]
        report.image(file.stem, png(side_by_side(pair)))
    return report


def png(pixels: torch.Tensor) -> bytes:
    """uint8 (h, w, 3) as PNG."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", "vision", "it draws pictures") from error
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "PNG")
    return buffer.getvalue()

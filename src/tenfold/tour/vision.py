"""The tour's vision panels: a few minutes of real self-supervised training, and what the network then sees."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import torch

from tenfold.data.readers import read_image
from tenfold.engine.report import Report
from tenfold.errors import MissingExtra
from tenfold.tour.page import say
from tenfold.tour.runs import seconds_per_step, train
from tenfold.tour.tiles import most_frequent, write_tiles
from tenfold.vision.backbones.images import find_images, normalize, open_image

PHOTOGRAPHS = 6
SHIPPED = Path("dinov3-mini")  # the weights of that name that come with tenfold
STRIDE = 8  # pixels between the cells that are matched
LINES = 120
VIEWS = ("plain", "colour change")


def pretrain_panel(out: Path, photographs: Path, minutes: float) -> Report:
    """DINOv3 in small: self-supervised training on tiles of photographs, and whether it knows tiles again in other colours."""
    from tenfold.vision.evaluate import LabelledImages, knn
    from tenfold.vision.recipes import dinov3_mini

    files = [file for file in find_images((photographs,)) if "motorcycle" not in file.name]
    data, val = write_tiles(files, out / "tiles")
    recipe = dataclasses.replace(dinov3_mini(), data=data)
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
    report.image("tiles of training, and of the question", png(question_picture(data, val)))
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
    say("matching the stereo pair")
    add_matches(report, out / "dinov3-mini")
    return report


def question_picture(data: Path, val: Path, columns: int = 5) -> torch.Tensor:
    """Photographs across: a training tile above, then the same photograph's unseen tiles as they are asked for."""
    names = sorted(folder.name for folder in val.iterdir())
    chosen = names[:: max(1, len(names) // columns)][:columns]
    across = [[data / name / "000.png", *sorted((val / name).iterdir())[:3]] for name in chosen]
    tiles = [torch.cat([torch.from_numpy(read_image(file)) for file in files], dim=0) for files in across]
    return torch.cat(tiles, dim=1)


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


def add_matches(report: Report, run: Path) -> None:
    """Dense matching on the stereo pair whose true disparity is known, beside what needs no training."""
    from tenfold.images.drawing import match_lines
    from tenfold.vision.backbones.backbone import model_of
    from tenfold.vision.evaluate_dense import initial
    from tenfold.vision.probes.correspond import dense_features, match, raw_patches
    from tenfold.vision.probes.stereo import constant_disparity, known_cells, matching_scores, sample_pair

    pair, model = sample_pair(), model_of(run)
    untrained = initial(model.config).for_inference()
    trained, shipped = model.for_inference(), model_of(SHIPPED).for_inference()
    sides = {
        "after this training": lambda image: dense_features(trained, image, STRIDE),
        "the weights that ship": lambda image: dense_features(shipped, image, STRIDE),
        "baseline: the same network untrained": lambda image: dense_features(untrained, image, STRIDE),
        "baseline: raw 32-pixel patches": lambda image: raw_patches(image, 32, STRIDE),
    }
    rows = [
        {"features": name}
        | {view: f"{score[8]:.1f}" for view, score in matching_scores(pair, embed, STRIDE, VIEWS).items()}
        for name, embed in sides.items()
    ]
    rows.append({"features": "baseline: constant disparity", "plain": f"{constant_disparity(pair, STRIDE)[8]:.1f}"})
    report.text(
        "Does a patch on the left find its place in the right photograph? Per cent within 8 pixels of the true disparity, "
        "with the right photograph as it is, and in other colours and blurred. Raw patches are hard to beat on an "
        "unchanged pair; features earn their keep where colours, size or direction change, and those of minutes of "
        "training do not yet "
        "(tenfold eval matching WEIGHTS runs all four changes)."
    )
    report.table("matches within 8 pixels of the truth, per cent", rows)
    cells = dense_features(trained, pair.left, STRIDE)
    found = match(cells, dense_features(trained, pair.right, STRIDE))
    known, truth = known_cells(pair, STRIDE)
    columns = known.shape[1]
    x, y = found.source.long().unbind(1)
    chosen = known[y, x].nonzero()[:, 0]
    chosen = chosen[torch.linspace(0, len(chosen) - 1, min(LINES, len(chosen))).long()]
    left = (found.source[chosen] * STRIDE) + STRIDE // 2
    right = (found.target[chosen] * STRIDE) + STRIDE // 2
    wanted = truth.flatten(0, 1)[y[chosen] * columns + x[chosen]]
    for name, ends in (("matches of this network", right), ("the truth for the same cells", wanted)):
        report.image(name, png(match_lines(pair.left, pair.right, left, ends)))


def png(pixels: torch.Tensor) -> bytes:
    """uint8 (h, w, 3) as PNG."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", "vision", "it draws pictures") from error
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "PNG")
    return buffer.getvalue()

"""The tour's vision panels: a few minutes of real self-supervised training, and what the network then sees."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from time import monotonic

import torch

from tenfold.engine.report import Report
from tenfold.errors import MissingExtra
from tenfold.tour.page import say

PHOTOGRAPHS = 6
SHIPPED = Path("dinov3-mini")  # the weights of that name that come with tenfold
STRIDE = 8  # pixels between the cells that are matched
LINES = 120
VIEWS = ("plain", "colour change")


def pretrain_panel(out: Path, minutes: float) -> Report:
    """DINOv3 in small: a few minutes of self-supervised training on photographs, and what it learned."""
    from tenfold.training import run_recipe
    from tenfold.vision.recipes import dinov3_mini

    recipe = dinov3_mini()
    say("measuring this machine's training speed")
    steps = max(30, round(minutes * 60 / seconds_per_step(recipe)))
    say(f"training dinov3-mini for {steps} steps, about {minutes:g} minutes")
    trainer = dataclasses.replace(
        recipe.trainer, steps=steps, validate_every=max(1, steps // 5), checkpoint_every=steps, threads=None
    )
    run_folder = out / "dinov3-mini"
    shutil.rmtree(run_folder, ignore_errors=True)
    metrics = run_recipe("dinov3-mini", dataclasses.replace(recipe, trainer=trainer), run_folder)

    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    report = Report("dinov3-mini")
    report.text(
        f"A 1.9 M parameter vision transformer learned from tiles of photographs without labels: {steps} steps of "
        f"{recipe.batch} tiles. The question put to its features: from which photograph does an unseen tile come?"
    )
    report.table(
        "k-NN on held-back tiles, per cent right",
        [
            {"features": "after this training", "k-NN": metrics["knn"]},
            {"features": "the same network untrained", "k-NN": metrics["knn_untrained"]},
            {"features": "raw pixels", "k-NN": metrics["knn_pixels"]},
        ],
    )
    if metrics["knn"] <= max(metrics["knn_untrained"], metrics["knn_pixels"]):
        report.text("The training did not beat its floor here: a longer run is needed (tenfold tour --minutes 10).")
    scored = [(row["step"], row["knn"]) for row in rows if "knn" in row]
    last = max(row["step"] for row in rows)
    report.plot(
        "k-NN while training",
        {
            "teacher": scored,
            "untrained": [(0, metrics["knn_untrained"]), (last, metrics["knn_untrained"])],
            "raw pixels": [(0, metrics["knn_pixels"]), (last, metrics["knn_pixels"])],
        },
        y="per cent",
    )
    report.plot("loss", {"total": [(row["step"], row["loss"]) for row in rows if "loss" in row]}, y="nats")
    say("matching the stereo pair")
    add_matches(report, run_folder)
    return report


def seconds_per_step(recipe: object) -> float:
    """Median time of a few real training steps on this machine."""
    from tenfold.engine.task import Shard
    from tenfold.engine.trainer import autocast_type
    from tenfold.vision.pretraining.pretrain import PretrainRecipe

    assert isinstance(recipe, PretrainRecipe)
    task = recipe.make_task()
    task.hparams.update({name: schedule.at(0, 100) for name, schedule in task.schedules.items()})
    torch.manual_seed(0)
    model = task.build()
    autocast = autocast_type(recipe.trainer.precision, torch.device("cpu"))
    seconds: list[float] = []
    batches = iter(task.batches(Shard()))
    for _ in range(6):
        start = monotonic()
        batch = next(batches)
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = task.training_step(model, batch, task.phases[0])["loss"]
        loss.backward()
        seconds.append(monotonic() - start)
    return sorted(seconds[1:])[2]


def features_panel(out: Path, photographs: Path) -> Report:
    """What the network just trained, and the one that ships, group together in whole photographs."""
    from tenfold.images.drawing import side_by_side
    from tenfold.vision.backbones.backbone import model_of
    from tenfold.vision.backbones.images import find_images, normalize, open_image
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
        "the same network untrained": lambda image: dense_features(untrained, image, STRIDE),
        "raw 32-pixel patches": lambda image: raw_patches(image, 32, STRIDE),
    }
    rows = [
        {"features": name}
        | {view: f"{score[8]:.1f}" for view, score in matching_scores(pair, embed, STRIDE, VIEWS).items()}
        for name, embed in sides.items()
    ]
    rows.append({"features": "constant disparity", "plain": f"{constant_disparity(pair, STRIDE)[8]:.1f}"})
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

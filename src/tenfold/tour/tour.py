"""`tenfold tour`: trains, embeds and draws on real photographs, and writes one page with ten sections.

Only what exists is run; a section of a system that does not exist says so (tour/page.py).
"""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

import torch

from tenfold.data.atomic import write_atomic
from tenfold.data.samples import fetch
from tenfold.engine.report import Report
from tenfold.errors import MissingExtra
from tenfold.tour.page import tour_page

PHOTOGRAPHS = 6


def run(out: Path, minutes: float) -> Path:
    """Runs the tour into `out` (its earlier run is replaced) and returns the page's path."""
    start = monotonic()
    out.mkdir(parents=True, exist_ok=True)
    _say("fetching the sample photographs")
    folder = fetch("scikit-image")
    panels = {1: pretrain_panel(out, minutes), 6: features_panel(out, folder)}
    spent = (monotonic() - start) / 60
    write_atomic(out / "index.html", tour_page(panels, spent).encode())
    write_atomic(
        out / "tour.json",
        json.dumps({str(n): json.loads(panel.json()) for n, panel in panels.items()}, indent=2).encode(),
    )
    return out / "index.html"


def pretrain_panel(out: Path, minutes: float) -> Report:
    """DINOv3 in small: a few minutes of self-supervised training on photographs, and what it learned."""
    from tenfold.training import run_recipe
    from tenfold.vision.recipes import dinov3_mini

    recipe = dinov3_mini()
    _say("measuring this machine's training speed")
    steps = max(30, round(minutes * 60 / seconds_per_step(recipe)))
    _say(f"training dinov3-mini for {steps} steps, about {minutes:g} minutes")
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
    return report


def seconds_per_step(recipe: object) -> float:
    """Median time of a few real training steps on this machine."""
    from tenfold.engine.task import Shard
    from tenfold.engine.trainer import autocast_type
    from tenfold.vision.pretrain import PretrainRecipe

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
    """What the network just trained groups together in whole photographs."""
    from tenfold.vision.commands import model_of
    from tenfold.vision.correspond import beside, pca_map
    from tenfold.vision.images import find_images, normalize, open_image

    model = model_of(out / "dinov3-mini")
    files = [f for f in find_images((photographs,)) if "motorcycle" not in f.name][:PHOTOGRAPHS]
    images = [open_image(file, 256, model.config.patch_size) for file in files]
    with torch.inference_mode():
        tokens = [model(normalize(image, model.config)[None]).patch_tokens[0].clone() for image in images]
    report = Report("features")
    report.text(
        "Left the photograph, right its patch features: the first three principal components as red, green and blue. "
        "Patches that the network finds alike have like colours. A network of minutes groups colour and texture; "
        "released weights (tenfold vision embed WEIGHTS photos/) group objects and their parts."
    )
    for file, image, picture in zip(files, images, pca_map(tokens)):
        report.image(file.stem, png(beside(image, picture)))
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


def _say(*words: Sequence[str] | str) -> None:
    print("tour:", *words, file=sys.stderr, flush=True)

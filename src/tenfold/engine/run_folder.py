"""The run folder: the configuration that is written before training, the final weights and the report after it.

    write_config(out, name, recipe)        config.json; `tenfold train --resume` reads it
    write_weights(out, delivered)          final.safetensors, and final-NAME.safetensors of further models
    run_report(out, name, scores)          curves of metrics.jsonl as a report, which `.write(out)` writes

Each file is written aside and renamed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.config import to_dict
from tenfold.data.atomic import write_atomic
from tenfold.data.tensors import save_own
from tenfold.engine.metrics import read_rows
from tenfold.engine.provenance import commit, version
from tenfold.engine.recipe import Recipe
from tenfold.engine.report import Report

RATES = ("grad_norm", "lr", "weight_decay", "seconds")  # each in a plot of its own, because their units differ


def write_config(out: Path, name: str, recipe: Recipe) -> None:
    """The resolved configuration of recipe `name`, and what wrote it."""
    saved = {"recipe": name, "version": version(), "commit": commit(), "torch": torch.__version__}
    write_atomic(out / "config.json", json.dumps({**saved, "config": to_dict(recipe)}, indent=2).encode())


def write_weights(out: Path, delivered: Mapping[str, tuple[dict[str, Tensor], tuple[str, Any]]]) -> None:
    """{file name without its ending: (tensors, card)}."""
    for name, (tensors, card) in delivered.items():
        save_own(out / f"{name}.safetensors", tensors, *card)


def run_report(folder: Path, name: str, scores: Mapping[str, float]) -> Report:
    """`scores`: what the last validation returned; its names are the curves that count as validation."""
    report = Report(name)
    if scores:
        report.table("at the end", [{"figure": name, "value": value} for name, value in scores.items()])
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in read_rows(folder / "metrics.jsonl"):
        for figure, value in row.items():
            if figure != "step" and isinstance(value, int | float):
                curves.setdefault(figure, []).append((row["step"], value))
    validated = {figure: curves.pop(figure) for figure in list(curves) if figure in scores}
    if validated:
        report.plot("validation", validated)
    rates = {figure: curves.pop(figure) for figure in list(curves) if figure.rpartition("/")[2] in RATES}
    report.plot("losses", curves)
    for figure, line in rates.items():
        report.plot("seconds per step" if figure == "seconds" else figure, {figure: line})
    return report

"""The report of a training run: its last scores as a table, and curves of everything that metrics.jsonl holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tenfold.engine.metrics import read_rows
from tenfold.engine.report import Report

RATES = ("grad_norm", "lr", "weight_decay", "seconds")  # each in a plot of its own, because their units differ


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

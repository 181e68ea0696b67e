"""The run folder: its configuration and weights come back, and its report has a curve of everything that was logged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from sample_recipe import Part, Sample
from tenfold.config import from_dict
from tenfold.data.tensors import read_safetensors
from tenfold.engine.metrics import read_rows
from tenfold.engine.recipe import TrainerConfig
from tenfold.engine.run_folder import run_report, write_config, write_weights


def test_a_configuration_comes_back_from_its_folder(tmp_path: Path) -> None:
    recipe = Sample(trainer=TrainerConfig(steps=7, ema=0.5), first=Part(9, (0.2, 0.4)), path=Path("a/b"), sides=(1, 2))
    write_config(tmp_path, "sample", recipe)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["recipe"] == "sample"
    assert from_dict(Sample, saved["config"]) == recipe
    write_config(tmp_path, "sample", dataclasses.replace(recipe, batch=2))
    assert json.loads((tmp_path / "config.json").read_text())["config"]["batch"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_every_model_of_a_run_gets_a_file_of_its_name(tmp_path: Path) -> None:
    models = {"final": torch.randn(2, 3), "final-teacher": torch.randn(4)}
    write_weights(tmp_path, {name: ({"w": tensor}, ("kind", {"width": 3})) for name, tensor in models.items()})
    for name, tensor in models.items():
        state, _ = read_safetensors(tmp_path / f"{name}.safetensors")
        assert torch.equal(state["w"], tensor)


def test_a_runs_report_has_its_scores_and_a_curve_of_everything_logged(tmp_path: Path) -> None:
    lines = [{"step": s, "loss": 5.0 - s / 10, "lr": 1e-3, "seconds": 0.5, "bad": "nan"} for s in range(1, 4)]
    lines.append({"step": 3, "knn": 40.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 4
    report = run_report(tmp_path, "a run", {"knn": 40.0})
    plots = {part["title"]: part["series"] for part in report.parts if part["kind"] == "plot"}
    assert set(plots) == {"validation", "losses", "lr", "seconds per step"}
    assert plots["losses"] == {"loss": [(1.0, 4.9), (2.0, 4.8), (3.0, 4.7)]}
    assert plots["validation"] == {"knn": [(3.0, 40.0)]}
    assert report.parts[0]["rows"] == [{"figure": "knn", "value": 40.0}]

"""Distillation: students of several sizes learn from one pass of a frozen teacher, on any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from jobs import Job
from tenfold.engine.checkpoint import read_model
from tenfold.errors import CheckpointError, UsageError
from tenfold.export.weights import load
from tenfold.vision.backbones.convnext import ConvNeXt
from tenfold.vision.backbones.vit import VisionTransformer
from tenfold.vision.pretraining.distill import DistillRecipe, teacher_recipe
from vision.recipe_flags import flags

TEACHER = [
    "dinov3-mini",
    *flags(
        {
            "trainer.steps": 2,
            "batch": 4,
            "dino.prototypes": 24,
            "trainer.validate-every": 0,
            "objective.ibot": 1.0,
            "ibot.hidden": 16,
            "ibot.bottleneck": 8,
            "ibot.prototypes": 12,
        }
    ),
]
STUDENTS = flags(
    {
        "students": ("mini", "t"),
        "trainer.steps": 4,
        "batch": 4,
        "source-side": 64,
        "trainer.precision": "fp32",
        "crops.global-size": 48,
        "crops.local-size": 24,
        "crops.local-crops": 2,
        "trainer.workers": 0,
        "trainer.log-every": 1,
        "trainer.device": "cpu",
        "optim.schedule.warmup": 0,
        "val-rows": 20,
    }
)


def train(folder: Path, *words: object, ranks: int = 1, code: int = 0) -> str:
    job = Job(["train", *map(str, words)], folder, ranks)
    assert job.wait() == [code] * ranks, job.errors
    return job.errors


def rows(run: Path, key: str = "loss") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if key in row]


@pytest.fixture(scope="module")
def data(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty labelled photographs."""
    path = tmp_path_factory.mktemp("photos") / "forty.parquet"
    source = pq.ParquetFile(test_data / "vision/imagenette160_val.parquet")
    pq.write_table(source.read_row_group(0).slice(0, 40), path)
    return path


@pytest.fixture(scope="module")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    train(folder, *TEACHER, "--data", data, "--out", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def distilled(teacher: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distilled")
    words = ["dinov3-distill", "--teacher", teacher, *STUDENTS, "--data", data, "--val", data]
    train(folder, *words, "--out", folder / "run")
    return folder / "run"


def test_every_student_is_delivered_and_loads(distilled: Path) -> None:
    small, tiny = load(distilled / "final-mini.safetensors"), load(distilled / "final-t.safetensors")
    assert isinstance(small, VisionTransformer)
    assert isinstance(tiny, VisionTransformer)
    assert (small.config.depth, tiny.config.depth, tiny.config.patch_size) == (4, 12, 8)
    first, main = load_file(distilled / "final-mini.safetensors"), load_file(distilled / "final.safetensors")
    assert all(first[name].equal(main[name]) for name in main)


def test_scores_stand_beside_teacher_pixels_and_untrained_students(distilled: Path) -> None:
    score = rows(distilled, "knn_mini")[-1]
    assert {"knn_t", "knn_teacher", "knn_pixels", "knn_mini_untrained", "knn_t_untrained"} <= set(score)
    assert all(0 <= score[name] <= 100 for name in score if name.startswith("knn"))


def test_the_teacher_never_changes_and_the_students_do(distilled: Path, teacher: Path) -> None:
    after, before = read_model(distilled), read_model(teacher)
    kept = {name: value for name, value in before.items() if name.startswith("teacher.")}
    assert kept
    assert all(after[name].equal(value) for name, value in kept.items())
    name = "0.backbone.blocks.0.ffn.up.weight"
    assert not after[f"students.{name}"].equal(after[f"averages.{name}"])


def test_two_ranks_give_the_losses_of_one_process(distilled: Path, teacher: Path, data: Path, tmp_path: Path) -> None:
    words = ["dinov3-distill", "--teacher", teacher, *STUDENTS, "--data", data, "--val", data]
    train(tmp_path, *words, "--out", tmp_path / "run", ranks=2)
    for two, one in zip(rows(tmp_path / "run"), rows(distilled), strict=True):
        for name in ("loss", "mini/dino_global", "t/ibot", "t/koleo", "grad_norm"):
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), (two["step"], name)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_convnext_student_learns_beside_a_transformer(teacher: Path, data: Path, tmp_path: Path, ranks: int) -> None:
    """Its last map (2 x 2 cells here) is compared at the teacher's 6 x 6 patches."""
    words = ["dinov3-distill", "--teacher", teacher, *STUDENTS, "--data", data, "--val", data]
    words[words.index("t")] = "convnext-t"
    words += ["--crops.local-size", "32", "--trainer.steps", "2", "--crops.global-size", "64", "--val-rows", "10"]
    train(tmp_path, *words, "--out", tmp_path / "run", ranks=ranks)
    model = load(tmp_path / "run/final-convnext-t.safetensors")
    assert isinstance(model, ConvNeXt)
    assert (model.config.patch_size, model.config.feature) == (8, "patch-mean")
    assert {"convnext-t/ibot", "convnext-t/dino_local", "mini/ibot"} <= set(rows(tmp_path / "run")[-1])
    assert "knn_convnext-t_untrained" in rows(tmp_path / "run", "knn_convnext-t")[-1]
    trained = read_model(tmp_path / "run")
    name = "1.backbone.stages.3.0.up.weight"
    assert not trained[f"students.{name}"].equal(trained[f"averages.{name}"])


def test_what_is_no_teacher_and_what_is_no_student_is_said(tmp_path: Path, teacher: Path, data: Path) -> None:
    with pytest.raises(CheckpointError, match="not a run folder"):
        teacher_recipe(tmp_path)
    with pytest.raises(UsageError, match="Did you mean 'mini'"):
        DistillRecipe(students=("mimi",))
    assert DistillRecipe(students=("t,s", "convnext-t")).students == ("t", "s", "convnext-t")
    with pytest.raises(UsageError, match="each size once"):
        DistillRecipe(students=("t", "t"))
    said = train(tmp_path, "dinov3-distill", "--teacher", tmp_path, "--data", data, "--out", tmp_path / "run", code=4)
    assert "config.json" in said

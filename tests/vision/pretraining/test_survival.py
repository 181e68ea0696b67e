"""R1, R2, R9, R11 for every recipe of the wing: killed, stopped, poisoned and moved to another number of ranks."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from jobs import Job
from tenfold.cli import main
from tenfold.data.tensors import save_own
from tenfold.vision.backbones.vit import VisionTransformer, VitConfig
from vision.recipe_flags import SMALL, flags

STEPS = 8
RUN = flags(
    {
        "trainer.steps": STEPS,
        "trainer.checkpoint-every": 2,
        "trainer.validate-every": 0,
        "trainer.log-every": 1,
        "trainer.workers": 0,
        "trainer.device": "cpu",
        "trainer.precision": "fp32",
        "optim.schedule.warmup": 0,
    }
)
MINI = flags(
    {
        "batch": 4,
        "dino.prototypes": 24,
        "crops.local-crops": 2,
        "objective.ibot": 1,
        "ibot.hidden": 16,
        "ibot.bottleneck": 8,
        "ibot.prototypes": 12,
    }
)
PATCH14 = ["--crops.global-size", 56, "--crops.local-size", 28]
RECIPES = [
    "dinov3-mini",
    "dinov3",
    "dinov2",
    "dinov3-imagenette",
    "dinov3-gram",
    "dinov3-highres",
    "dinov3-distill",
    "dinov3-text",
]
# One of them in the default set; the others run the same code for minutes.
EACH = [pytest.param(name, marks=() if name == "dinov3-mini" else pytest.mark.slow) for name in RECIPES]

Words = Callable[[str], list[object]]


def start(folder: Path, *words: object, ranks: int = 1) -> Job:
    return Job(["train", *map(str, words)], folder, ranks)


def finish(job: Job, code: int = 0) -> None:
    assert set(job.wait(280)) == {code}, job.errors
    assert "Traceback" not in job.errors


def rows(run: Path) -> dict[int, dict[str, Any]]:
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    found = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return {row["step"]: {k: v for k, v in row.items() if k != "seconds"} for row in found if "loss" in row}


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 280  # generous: a busy machine starts a process in a minute
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def words(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Words:
    """The command of a small run of each recipe; what it starts from is made when it is first asked for."""
    folder = tmp_path_factory.mktemp("sources")
    data = folder / "photos.parquet"
    source = pq.ParquetFile(test_data / "vision/imagenette160_val.parquet")
    pq.write_table(source.read_row_group(0).slice(0, 40), data)

    def made(run: str, *args: object) -> Path:
        if not (folder / run).exists():
            finish(start(folder, *args, "--data", data, *RUN, "--trainer.steps", 2, "--out", folder / run))
        return folder / run

    def command(recipe: str) -> list[object]:
        if recipe == "dinov3-mini":
            return [recipe, *MINI, "--data", data, *RUN]
        if recipe == "dinov3-distill":
            teacher = made("teacher", "dinov3-mini", *MINI)
            small = ["--batch", 4, "--source-side", 64, "--crops.global-size", 48, "--crops.local-size", 24]
            students = ["--students", "mini", "--crops.local-crops", 2]
            return [recipe, "--teacher", teacher, *students, *small, "--data", data, *RUN]
        if recipe == "dinov3-text":
            config = VitConfig(dim=48, depth=1, heads=2, image_size=64)
            torch.manual_seed(0)
            path = save_own(folder / "vit.safetensors", VisionTransformer(config).state_dict(), "vit", config)
            tower = ["--text-tower", "clip", "--clip.dim", 32, "--clip.depth", 1, "--clip.heads", 2, "--drop-path", 0]
            return [recipe, "--backbone", path, "--captions", data, "--batch", 4, "--source-side", 64, *tower, *RUN]
        small = [*SMALL, *(PATCH14 if recipe == "dinov2" else []), "--data", data, *RUN]
        if recipe == "dinov3-gram":
            return [recipe, *small, "--start", made("stage1", "dinov3", *SMALL)]
        if recipe == "dinov3-highres":
            mixes = ["--resolutions", 64, 32, 96, 0.5, 96, 48, 0, 0.5]
            return [recipe, *small, *mixes, "--start", made("stage1", "dinov3", *SMALL)]
        return [recipe, *small]

    return command


@pytest.fixture(scope="module")
def straight(words: Words, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """The run that nothing happens to, once for every recipe and number of ranks."""
    folder = tmp_path_factory.mktemp("straight")

    def run(recipe: str, ranks: int) -> Path:
        out = folder / f"{recipe}-{ranks}"
        if not out.exists():
            finish(start(folder, *words(recipe), "--out", out, ranks=ranks))
        return out

    return run


def assert_same_run(one: Path, two: Path) -> None:
    assert rows(one) == rows(two)
    ours, theirs = load_file(one / "final.safetensors"), load_file(two / "final.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.samples
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("recipe", EACH)
def test_a_killed_or_stopped_run_goes_on_to_the_same_bits(
    recipe: str, number: int, words: Words, straight: Callable[[str, int], Path], tmp_path: Path
) -> None:
    job = start(tmp_path, *words(recipe), "--out", tmp_path / "run")
    wait_for(lambda: (tmp_path / "run/step-2").exists())
    job.signal(number)
    codes = job.wait()
    assert codes[0] in ((75, 0) if number == signal.SIGTERM else (-signal.SIGKILL, 0)), job.errors
    finish(start(tmp_path, "--resume", tmp_path / "run"))
    assert_same_run(tmp_path / "run", straight(recipe, 1))


@pytest.mark.samples
@pytest.mark.parametrize("recipe", EACH)
def test_a_loss_that_is_not_finite_stops_the_run_and_can_be_seen_again(
    recipe: str, words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = start(
        tmp_path, *words(recipe), "--optim.lr", 1e30, "--trainer.checkpoint-every", 1, "--out", tmp_path / "run"
    )
    finish(job, code=5)
    captures = list((tmp_path / "run").glob("nonfinite-step-*"))
    assert len(captures) == 1
    assert max(rows(tmp_path / "run"), default=0) == int(captures[0].name.rpartition("-")[2])
    first = json.loads((captures[0] / "summary.json").read_text())
    assert main(["train", "--replay", str(captures[0])]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["gradients"] == first["gradients"]
    for name, value in first["losses"].items():
        assert again["losses"][name] == value or (value != value and again["losses"][name] != again["losses"][name])


@pytest.mark.samples
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_on_two_ranks_goes_on_with_one(
    recipe: str, words: Words, straight: Callable[[str, int], Path], tmp_path: Path
) -> None:
    job = start(tmp_path, *words(recipe), "--out", tmp_path / "run", ranks=2)
    wait_for(lambda: (tmp_path / "run/step-2").exists())
    job.signal(signal.SIGTERM)
    assert set(job.wait()) <= {75, 0}, job.errors
    stopped = max(int(path.name.removeprefix("step-")) for path in (tmp_path / "run").glob("step-*"))
    finish(start(tmp_path, "--resume", tmp_path / "run"))
    ours, theirs = rows(tmp_path / "run"), rows(straight(recipe, 2))
    assert ours.keys() == theirs.keys()
    assert all(ours[step] == theirs[step] for step in range(1, stopped + 1))
    if stopped < STEPS:  # one step later the ranks' sums have another order, and nothing else
        for name, value in theirs[stopped + 1].items():
            assert ours[stopped + 1][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name

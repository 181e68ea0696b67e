"""`tenfold train dinov3-mini` as a person runs it: real images, real processes, one and two ranks, stop and resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vision.recipe_flags import flags

SMALL = ["--batch", "8", "--dino.prototypes", "32", "--trainer.log-every", "1", "--val-rows", "100"]


def train(test_data: Path, *args: str, ranks: int = 1, code: int = 0) -> dict[str, object]:
    data = ["--data", str(test_data / "vision/imagenette160_val.parquet")] if "--resume" not in args else []
    start = [sys.executable, "-m"]
    if ranks > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*start, "tenfold", "train", *args, *data], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr or ranks > 1, result.stderr
    return json.loads(result.stdout[result.stdout.index("{") :]) if code == 0 else {"stderr": result.stderr}


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def single(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("single") / "run"
    train(
        test_data,
        "dinov3-mini",
        *SMALL,
        *flags(
            {
                "trainer.steps": 5,
                "trainer.precision": "fp32",
                "out": str(run),
                "trainer.validate-every": 0,
                "optim.schedule.warmup": 1,
            }
        ),
    )
    return run


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_ranks_give_the_losses_of_one_process(single: Path, test_data: Path, tmp_path: Path, parallel: str) -> None:
    run = tmp_path / "run"
    train(
        test_data,
        "dinov3-mini",
        *SMALL,
        *flags(
            {
                "trainer.steps": 5,
                "trainer.precision": "fp32",
                "out": str(run),
                "trainer.validate-every": 0,
                "optim.schedule.warmup": 1,
                "trainer.parallel": parallel,
            }
        ),
        ranks=2,
    )
    assert len(losses(single)) == 5
    assert losses(run) == pytest.approx(losses(single), abs=1e-4)


def test_a_run_on_real_images_scores_beside_its_floors_and_leaves_weights_that_load(
    test_data: Path, tmp_path: Path
) -> None:
    import tenfold

    run = tmp_path / "run"
    result = train(
        test_data,
        "dinov3-mini",
        *SMALL,
        *flags({"trainer.steps": 3, "out": str(run), "val": str(test_data / "vision/imagenette160_val.parquet")}),
    )
    assert {"knn", "knn_pixels", "knn_untrained"} <= set(result)
    model = tenfold.load(run)
    assert model.config.dim == 192
    assert set(load_file(run / "final.safetensors")) == set(model.state_dict())
    again = train(test_data, "dinov3-mini", "--out", str(run), code=2)
    assert "--resume" in str(again["stderr"])


@pytest.mark.slow  # the same with smaller sizes: pretraining/test_survival.py
def test_a_stopped_run_resumes_to_the_same_bits(test_data: Path, tmp_path: Path) -> None:
    common = [*SMALL, "--trainer.validate-every", "0", "--trainer.checkpoint-every", "2"]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train(test_data, "dinov3-mini", *common, "--trainer.steps", "6", "--out", str(straight))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    data = ["--data", str(test_data / "vision/imagenette160_val.parquet")]
    words = [sys.executable, "-m", "tenfold", "train", "dinov3-mini", *common, "--trainer.steps", "6", *data]
    process = subprocess.Popen([*words, "--out", str(stopped)], env=environment, stderr=subprocess.DEVNULL)
    while not list(stopped.glob("step-2*")) and process.poll() is None:
        pass
    process.kill()
    process.wait()
    train(test_data, "--resume", str(stopped))
    ours, reference = load_file(stopped / "final.safetensors"), load_file(straight / "final.safetensors")
    assert all(ours[name].equal(reference[name]) for name in reference)


def test_a_folder_that_is_no_run_cannot_be_resumed(tmp_path: Path, test_data: Path) -> None:
    message = train(test_data, "--resume", str(tmp_path), code=4)
    assert "no config.json" in str(message["stderr"])

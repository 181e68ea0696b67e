"""The trainer on CUDA: the same contract as on a processor."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from jobs import Job

pytestmark = pytest.mark.gpu


def train(folder: Path, text: Path, *words: object) -> Path:
    run = folder / "run"
    job = Job(["train", "byte-lm", "--text", str(text), "--out", str(run), *map(str, words)], folder, 1)
    assert job.wait() == [0], job.errors
    return run


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_learns_and_repeats_its_bits(test_data: Path, tmp_path: Path, precision: str) -> None:
    text = test_data / "text/tinyshakespeare.txt.gz"
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        words = ("--trainer.device", "cuda", "--trainer.precision", precision)
        runs.append(load_file(train(tmp_path / name, text, *words) / "final.safetensors"))
    assert all(runs[0][name].equal(runs[1][name]) for name in runs[0])


def test_a_step_on_cuda_is_the_step_of_a_processor(test_data: Path, tmp_path: Path) -> None:
    import json

    text = test_data / "text/tinyshakespeare.txt.gz"
    losses = []
    for device in ("cpu", "cuda"):
        (tmp_path / device).mkdir()
        words = ("--trainer.device", device, "--drop-path", "0", "--trainer.steps", 5)
        run = train(tmp_path / device, text, *words)
        losses.append([json.loads(row).get("loss") for row in (run / "metrics.jsonl").read_text().splitlines()][:5])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)

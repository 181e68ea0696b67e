"""R9, R12: NaN stops a run before it harms the weights and can be seen again; a lost rank is named, never waited for."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from byte_runs import ByteLm, steps, wait_for
from jobs import PROGRAMS


@pytest.mark.parametrize("poison", ["loss", "gradient", "sample"])
def test_nothing_moves_after_a_number_that_is_not_finite(byte_lm: ByteLm, tmp_path: Path, poison: str) -> None:
    run = tmp_path / "run"
    errors = byte_lm.run(run, "--poison", poison, "--trainer.checkpoint-every", "1", code=5)
    assert "step 3" in errors
    assert "--replay" in errors
    captured = torch.load(run / "nonfinite-step-3/rank-0.pt", weights_only=True)["model"]
    with safe_open(next((run / "step-3").glob("*.safetensors")), "pt") as saved:
        assert all(captured[name].equal(saved.get_tensor(f"model.{name}")) for name in captured)
    assert max(steps(run)) == 3
    summary = json.loads((run / "nonfinite-step-3/summary.json").read_text())
    assert summary["gradients"] or summary["losses"]["loss"] != summary["losses"]["loss"]


@pytest.mark.parametrize(
    ("poison", "precision"), [("loss", "fp32"), ("gradient", "fp32"), ("gradient", "bf16"), ("sample", "fp32")]
)
def test_the_capture_shows_the_same_numbers_again(byte_lm: ByteLm, tmp_path: Path, poison: str, precision: str) -> None:
    run = tmp_path / "run"
    byte_lm.run(run, "--poison", poison, "--trainer.precision", precision, code=5)
    words = [sys.executable, str(PROGRAMS / "byte_lm.py"), "train", "--replay", str(run / "nonfinite-step-3")]
    again = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    first = json.loads((run / "nonfinite-step-3/summary.json").read_text())
    assert again["gradients"] == first["gradients"]
    for name, value in first["losses"].items():
        assert again["losses"][name] == value or (value != value and again["losses"][name] != again["losses"][name])


@pytest.mark.parametrize(("poison", "parallel"), [("loss", "ddp"), ("sample", "fsdp")])
def test_one_bad_rank_stops_every_rank(byte_lm: ByteLm, tmp_path: Path, poison: str, parallel: str) -> None:
    run = tmp_path / "run"
    options = ("--poison", poison, "--poison-rank", "1", "--trainer.parallel", parallel)
    job = byte_lm.start(run, *options, ranks=2)
    assert job.wait(60) == [5, 5], job.errors
    assert {p.name for p in (run / "nonfinite-step-3").iterdir()} == {"rank-0.pt", "rank-1.pt", "summary.json"}


@pytest.mark.parametrize("killed", [0, 1])
def test_a_lost_rank_is_named_and_not_waited_for(byte_lm: ByteLm, tmp_path: Path, killed: int) -> None:
    run = tmp_path / "run"
    job = byte_lm.start(run, "--pause", "0.05", "--trainer.steps", "1000", ranks=2)
    wait_for(lambda: len(steps(run)) >= 3)
    job.signal(signal.SIGKILL, rank=killed)
    begun = time.monotonic()
    codes = job.wait(30)
    assert codes[killed] == -9
    assert codes[1 - killed] == 1, job.errors
    assert f"lost rank {killed} of 2" in job.errors
    assert "Traceback" not in job.errors
    assert time.monotonic() - begun < 30

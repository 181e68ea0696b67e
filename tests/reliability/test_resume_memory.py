"""R2 and R9 with a memory table: its rows, their moments and their counts come back too, on any number of ranks."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from byte_runs import ByteLm, steps, wait_for

OPTIONS = ("--memory", "--drop-path", "0", "--trainer.steps", "12")


def same_weights(first: Path, second: Path) -> bool:
    a, b = load_file(first / "final.safetensors"), load_file(second / "final.safetensors")
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def stopped(byte_lm: ByteLm, run: Path, *options: str, ranks: int = 1) -> None:
    """A run that was killed after its first checkpoint."""
    job = byte_lm.start(run, *OPTIONS, *options, "--pause", "0.1", ranks=ranks)
    wait_for(lambda: (run / "step-5").exists())
    job.signal(signal.SIGKILL)
    job.wait()
    assert max(steps(run)) < 12


def test_a_killed_run_with_a_table_goes_on_to_the_same_bits(byte_lm: ByteLm, tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    byte_lm.run(straight, *OPTIONS)
    stopped(byte_lm, killed)
    byte_lm.run(killed, resume=True)
    assert steps(killed) == steps(straight)
    assert same_weights(killed, straight)
    assert load_file(straight / "final.safetensors")["memory.values"].shape == (256, 32)


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_table_split_over_two_ranks_resumes_on_two_one_and_four(
    byte_lm: ByteLm, tmp_path: Path, parallel: str
) -> None:
    straight, two, one, four = (tmp_path / name for name in ("straight", "two", "one", "four"))
    options = ("--table-ranks", "2", "--trainer.parallel", parallel)
    byte_lm.run(straight, *OPTIONS, *options, ranks=2)
    stopped(byte_lm, two, *options, ranks=2)
    shutil.copytree(two, one)
    shutil.copytree(two, four)
    byte_lm.run(two, resume=True, ranks=2)
    assert steps(two) == steps(straight)
    assert same_weights(two, straight)
    for run, ranks in ((one, 1), (four, 4)):
        byte_lm.run(run, resume=True, ranks=ranks)
        for step, row in steps(straight).items():
            assert steps(run)[step]["loss"] == pytest.approx(row["loss"], rel=1e-5)


def test_a_bad_gradient_stops_the_step_before_the_table_moves(byte_lm: ByteLm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    errors = byte_lm.run(run, *OPTIONS, "--poison", "gradient", "--trainer.checkpoint-every", "1", code=5)
    assert "step 3" in errors
    assert (run / "nonfinite-step-3/summary.json").exists()
    assert max(steps(run)) == 3

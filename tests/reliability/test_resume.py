"""R2, R11, R21: a run that was stopped, however, goes on with the bits of one that never was."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from byte_runs import ByteLm, steps, wait_for


def same_weights(first: Path, second: Path) -> bool:
    a, b = load_file(first / "final.safetensors"), load_file(second / "final.safetensors")
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


@pytest.fixture(scope="module")
def straight(byte_lm: ByteLm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("straight") / "run"
    byte_lm.run(run, "--trainer.ema", "0.9")
    return run


def test_twenty_steps_straight_equal_seven_then_a_kill_then_thirteen(
    byte_lm: ByteLm, straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = byte_lm.start(run, "--trainer.ema", "0.9", "--pause", "0.1")
    wait_for(lambda: len(steps(run)) >= 7)
    job.signal(signal.SIGKILL)
    job.wait()
    assert max(steps(run)) < 20
    byte_lm.run(run, resume=True)
    assert steps(run) == steps(straight)
    assert same_weights(run, straight)


def test_accumulation_and_two_phases_resume_to_the_same_bits_too(byte_lm: ByteLm, tmp_path: Path) -> None:
    options = ("--adversary", "--trainer.accumulation", "2", "--trainer.activation-checkpointing")
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    byte_lm.run(straight, *options, "--trainer.steps", "12")
    job = byte_lm.start(stopped, *options, "--trainer.steps", "12", "--pause", "0.05")
    wait_for(lambda: (stopped / "step-5").exists())
    job.signal(signal.SIGKILL)
    job.wait()
    byte_lm.run(stopped, resume=True)
    assert same_weights(stopped, straight)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_the_same_on_two_ranks_and_resharded_to_one(byte_lm: ByteLm, tmp_path: Path, parallel: str) -> None:
    """Killed on two ranks; resumed on two it has the same bits, resumed on one the same losses to 1e-5."""
    straight, two, one = tmp_path / "straight", tmp_path / "two", tmp_path / "one"
    options = ("--trainer.parallel", parallel, "--drop-path", "0", "--trainer.steps", "12")
    byte_lm.run(straight, *options, ranks=2)
    job = byte_lm.start(two, *options, "--pause", "0.1", ranks=2)
    wait_for(lambda: (two / "step-5").exists())
    job.signal(signal.SIGKILL)
    job.wait()
    shutil.copytree(two, one)
    byte_lm.run(two, resume=True, ranks=2)
    assert steps(two) == steps(straight)
    assert same_weights(two, straight)
    byte_lm.run(one, resume=True)
    for step, row in steps(straight).items():
        assert steps(one)[step]["loss"] == pytest.approx(row["loss"], rel=1e-5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_saves_the_state_and_leaves_with_75(
    byte_lm: ByteLm, straight: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    job = byte_lm.start(run, "--trainer.ema", "0.9", "--pause", "0.05", "--trainer.checkpoint-every", "0")
    after = random.Random(number).randint(1, 12)
    wait_for(lambda: len(steps(run)) >= after)
    job.signal(number)
    job.signal(number)  # asking twice changes nothing
    assert job.wait(25) == [75], job.errors
    assert "--resume" in job.errors
    assert len(list(run.glob("step-*/manifest.json"))) == 1
    byte_lm.run(run, resume=True)
    assert steps(run) == steps(straight)
    assert same_weights(run, straight)


def test_a_signal_to_one_of_two_ranks_stops_both_with_the_state_saved(byte_lm: ByteLm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = byte_lm.start(run, "--pause", "0.1", "--trainer.checkpoint-every", "0", ranks=2)
    wait_for(lambda: len(steps(run)) >= 2)
    job.signal(signal.SIGUSR2, rank=1)
    assert job.wait(25) == [75, 75], job.errors
    assert len(list(run.glob("step-*/manifest.json"))) == 1


def test_a_signal_in_a_long_validation_does_not_wait_for_its_end(byte_lm: ByteLm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--trainer.validate-every", "2", "--slow-validation", "300", "--trainer.steps", "4")
    job = byte_lm.start(run, *options)
    wait_for(lambda: 2 in steps(run))
    time.sleep(0.3)
    job.signal(signal.SIGTERM)
    assert job.wait(25) == [75], job.errors
    assert (run / "step-2/manifest.json").exists()


def test_a_second_process_on_one_run_folder_is_told_who_holds_it(byte_lm: ByteLm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = byte_lm.start(run, "--pause", "0.3")
    wait_for(lambda: steps(run))
    errors = byte_lm.run(run, resume=True, code=2)
    assert f"process {first.pid} on" in errors
    first.signal(signal.SIGKILL)
    first.wait()
    byte_lm.run(run, resume=True)
    assert max(steps(run)) == 20

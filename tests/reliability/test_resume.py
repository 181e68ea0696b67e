"""R2, R11, R21: a run that was stopped, however, goes on with the bits of one that never was."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.reliability.conftest import ByteLm, steps, wait_for


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
    process = byte_lm.start(run, "--trainer.ema", "0.9", "--pause", "0.2")
    wait_for(lambda: (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= 7)
    process.kill()
    process.communicate()
    assert max(steps(run)) < 20
    config = run / "config.json"
    config.write_text(config.read_text().replace('"pause": 0.2', '"pause": 0.2'))
    byte_lm.run(run, resume=True)
    assert steps(run) == steps(straight)
    assert same_weights(run, straight)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_the_same_on_two_ranks_and_resharded_to_one(byte_lm: ByteLm, tmp_path: Path, parallel: str) -> None:
    """Killed on two ranks; resumed on two it has the same bits, resumed on one the same losses to 1e-5."""
    import shutil

    straight, two, one = tmp_path / "straight", tmp_path / "two", tmp_path / "one"
    options = ("--trainer.parallel", parallel, "--drop-path", "0", "--trainer.steps", "12")
    byte_lm.run(straight, *options, ranks=2)
    process = byte_lm.start(two, *options, "--pause", "0.0", ranks=2)
    wait_for(lambda: list(two.glob("step-5")))
    process.kill()  # torchrun dies; its ranks lose their store and end
    process.communicate()
    wait_for(lambda: not _locked(two), 40)
    for old in two.glob("step-*"):
        if old.name != "step-5":
            shutil.rmtree(old)
    shutil.copytree(two, one)
    byte_lm.run(two, resume=True, ranks=2)
    assert steps(two) == steps(straight)
    assert same_weights(two, straight)
    byte_lm.run(one, resume=True)
    for step, row in steps(straight).items():
        assert steps(one)[step]["loss"] == pytest.approx(row["loss"], rel=1e-5)


def _locked(run: Path) -> bool:
    import fcntl
    import os

    handle = os.open(run / ".lock", os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_saves_the_state_and_leaves_with_75(
    byte_lm: ByteLm, straight: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    process = byte_lm.start(run, "--trainer.ema", "0.9", "--pause", "0.05", "--trainer.checkpoint-every", "0")
    after = random.Random(number).randint(1, 12)
    wait_for(lambda: (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= after)
    process.send_signal(number)
    process.send_signal(number)  # asking twice changes nothing
    _, errors = process.communicate(timeout=25)
    assert process.returncode == 75, errors
    assert "--resume" in errors
    assert len(list(run.glob("step-*/manifest.json"))) == 1
    byte_lm.run(run, resume=True)
    assert steps(run) == steps(straight)
    assert same_weights(run, straight)


def test_a_signal_in_a_long_validation_does_not_wait_for_its_end(byte_lm: ByteLm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--trainer.validate-every", "2", "--slow-validation", "300", "--trainer.steps", "4")
    process = byte_lm.start(run, *options)
    wait_for(lambda: (run / "metrics.jsonl").exists() and 2 in steps(run))
    process.terminate()
    _, errors = process.communicate(timeout=25)
    assert process.returncode == 75, errors
    assert (run / "step-2/manifest.json").exists()


def test_a_second_process_on_one_run_folder_is_told_who_holds_it(byte_lm: ByteLm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = byte_lm.start(run, "--pause", "0.3")
    wait_for(lambda: (run / "metrics.jsonl").exists())
    errors = byte_lm.run(run, resume=True, code=2)
    assert f"process {first.pid}" in errors
    first.kill()
    first.communicate()
    byte_lm.run(run, resume=True)
    assert max(steps(run)) == 20

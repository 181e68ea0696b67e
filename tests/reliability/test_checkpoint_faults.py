"""Checkpoints of runs that are killed while they save, or whose disk is full: what was complete is found again."""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from byte_runs import ByteLm, steps, wait_for
from tenfold.engine.checkpoint import CheckpointStore
from tenfold.engine.parallel import Place

ALONE = Place(0, 1, torch.device("cpu"))


def wait_for_newer(folder: Path, step: int) -> None:
    wait_for(lambda: complete(folder) > step)


def complete(folder: Path) -> int:
    return max((int(p.name[5:]) for p in folder.glob("step-*")), default=0)


def test_fifty_kills_while_saving_lose_nothing_that_was_complete(byte_lm: ByteLm, tmp_path: Path) -> None:
    from byte_lm import save_forever

    dice, seen = random.Random(0), 0
    store = CheckpointStore(tmp_path, ALONE, "byte-lm")
    for _ in range(50):
        process = multiprocessing.get_context("forkserver").Process(target=save_forever, args=(tmp_path,))
        process.start()
        wait_for_newer(tmp_path, seen)
        time.sleep(dice.uniform(0, 0.05))
        assert process.is_alive()
        before = complete(tmp_path)
        process.kill()
        process.join()
        found = store.newest()
        assert found is not None
        seen = found[0]
        assert seen >= before
        assert len(list(tmp_path.glob("step-*"))) <= 3  # two kept, and one that was about to go
    store.clear_leftovers()
    assert all(p.name.startswith("step-") for p in tmp_path.iterdir())


@pytest.mark.slow
def test_fifty_kills_of_a_whole_trainer_lose_at_most_one_interval(byte_lm: ByteLm, tmp_path: Path) -> None:
    run, dice = tmp_path / "run", random.Random(1)
    options = ("--trainer.steps", "100000", "--trainer.checkpoint-every", "3")
    for trial in range(50):
        job = byte_lm.start(run, *options) if trial == 0 else byte_lm.start(run, resume=True)
        wait_for_newer(run, complete(run))
        time.sleep(dice.uniform(0, 0.3))
        reached = max(steps(run))
        job.signal(9)
        job.wait()
        found = CheckpointStore(run, ALONE, _hash(run)).newest()
        assert found is not None
        assert found[0] >= reached - 3


def _hash(run: Path) -> str:
    import json

    from byte_lm import ByteRecipe

    from tenfold.config import config_hash, from_dict

    return config_hash(from_dict(ByteRecipe, json.loads((run / "config.json").read_text())["config"]))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], check=False).returncode
    if mounted != 0:
        from needed import absent

        absent("the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_checkpoint_and_the_run_goes_on_when_there_is_room(
    byte_lm: ByteLm, small_disk: Path
) -> None:
    run = small_disk / "run"
    job = byte_lm.start(run, "--pause", "0.05", "--width", "64")
    wait_for(lambda: (run / "step-5").exists())
    filler = small_disk / "filler"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    filler.write_bytes(b"x" * (free - 300_000))
    assert job.wait() == [4], job.errors
    assert "no space left" in job.errors
    assert "Traceback" not in job.errors
    assert CheckpointStore(run, ALONE, "").damage(run / "step-5") is None
    assert {p.name for p in run.iterdir() if p.is_dir()} == {"step-5"}
    filler.unlink()
    byte_lm.run(run, resume=True)
    assert max(steps(run)) == 20


def test_a_log_that_cannot_be_written_is_said_and_costs_no_checkpoint(byte_lm: ByteLm, small_disk: Path) -> None:
    run = small_disk / "run"
    job = byte_lm.start(run, "--pause", "0.05", "--trainer.checkpoint-every", "4", "--trainer.steps", "400")
    wait_for(lambda: (run / "step-4").exists())
    while job.processes[0].is_alive():  # the log's last block fills up before the next checkpoint or in it
        with (small_disk / "filler").open("ab", buffering=0) as filler:
            try:
                filler.write(b"x" * 4096)
            except OSError:
                time.sleep(0.01)
    assert job.wait() == [4], job.errors
    found = CheckpointStore(run, ALONE, _hash(run)).newest()
    assert found is not None

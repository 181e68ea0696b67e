"""Real `tenfold` processes for tests, one or several ranks. They are forked from a server that has torch loaded, which
saves the seconds of its import; what runs in them is the command line itself."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(__file__).parent / "programs"
sys.path.insert(0, str(PROGRAMS))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by the server when it loads torch
multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["byte_lm", "memory_ranks", "tenfold.training", "tenfold.engine.trainer", "tyro"]
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(function: Callable[..., None], world: int, *args: object, seconds: float = 120) -> None:
    """Runs `function(environment, *args)` on `world` real ranks and fails when one of them does."""
    port = str(free_port())
    processes = []
    for rank in range(world):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        group = {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = multiprocessing.get_context("forkserver").Process(target=function, args=(group, *args))
        process.start()
        processes.append(process)
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        if process.is_alive():
            for rank in processes:
                rank.kill()
            pytest.fail(f"a rank is still running after {seconds} s")
    assert [process.exitcode for process in processes] == [0] * world


class Job:
    """One command on one or more ranks."""

    def __init__(self, args: list[str], folder: Path, ranks: int) -> None:
        from byte_lm import command

        context = multiprocessing.get_context("forkserver")
        port = free_port()
        self.logs = [folder / f"errors-{time.monotonic_ns()}-{rank}.txt" for rank in range(ranks)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            group = {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} if ranks > 1 else {}
            process = context.Process(target=command, args=(args, group, log))
            process.start()
            self.processes.append(process)

    @property
    def pid(self) -> int | None:
        return self.processes[0].pid

    def signal(self, number: int, rank: int | None = None) -> None:
        for process in self.processes if rank is None else [self.processes[rank]]:
            if process.pid and process.is_alive():
                os.kill(process.pid, number)

    def wait(self, seconds: float = 120) -> list[int | None]:
        """Exit codes of the ranks; fails when one hangs."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                self.signal(signal.SIGKILL)
                pytest.fail(f"still running after {seconds} s: {self.errors}")
        return [process.exitcode for process in self.processes]

    @property
    def errors(self) -> str:
        return "\n".join(log.read_text() for log in self.logs if log.exists())


def train(folder: Path, *words: object, ranks: int = 1, code: int = 0) -> str:
    """Runs `tenfold train` on so many ranks to its exit code; what it said."""
    job = Job(["train", *map(str, words)], folder, ranks)
    assert job.wait() == [code] * ranks, job.errors
    return job.errors


def rows(run: Path) -> list[dict[str, Any]]:
    """The training steps in a run's metrics, without their times."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found if "loss" in row]

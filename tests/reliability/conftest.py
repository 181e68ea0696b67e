"""Runs of the small byte model in real processes. They are forked from a server that has torch loaded, which saves the
seconds of its import; what runs in them is the command line itself."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(__file__).parents[1] / "programs"


class Job:
    """One command on one or more ranks."""

    def __init__(self, args: list[str], folder: Path, ranks: int) -> None:
        from byte_lm import command

        context = multiprocessing.get_context("forkserver")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
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


@dataclass
class ByteLm:
    """Starts `tenfold train byte-lm` on Shakespeare."""

    text: Path
    folder: Path

    def start(self, run: Path, *args: object, ranks: int = 1, resume: bool = False) -> Job:
        words = ("--resume", run) if resume else ("byte-lm", "--out", run, "--text", self.text)
        return Job(["train", *map(str, (*words, *args))], self.folder, ranks)

    def run(self, run: Path, *args: object, ranks: int = 1, resume: bool = False, code: int = 0) -> str:
        """Runs to the end, checks every rank's exit code, and returns standard error."""
        job = self.start(run, *args, ranks=ranks, resume=resume)
        assert job.wait() == [code] * ranks, job.errors
        assert "Traceback" not in job.errors, job.errors
        return job.errors


@pytest.fixture(scope="session")
def byte_lm(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> ByteLm:
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the server when it loads torch
    sys.path.insert(0, str(PROGRAMS))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["byte_lm", "tenfold.training", "tenfold.engine.trainer", "tyro"])
    return ByteLm(test_data / "text/tinyshakespeare.txt.gz", tmp_path_factory.mktemp("logs"))


def steps(run: Path) -> dict[int, dict[str, Any]]:
    """The logged training steps; fails when one stands twice. A torn last line is left out."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    found = [row for row in rows if "loss" in row]
    assert len({row["step"] for row in found}) == len(found)
    return {row["step"]: {k: v for k, v in row.items() if k != "seconds"} for row in found}


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)

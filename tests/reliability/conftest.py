"""Runs of the small byte model in processes of their own, as a person starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[1] / "programs" / "byte_lm.py"


@dataclass
class ByteLm:
    """Starts `tenfold train byte-lm` on Shakespeare."""

    text: Path

    def words(self, *args: object, ranks: int = 1) -> list[str]:
        start = [sys.executable]
        if ranks > 1:
            start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        return [*start, str(PROGRAM), "train", *map(str, args)]

    def start(self, run: Path, *args: object, ranks: int = 1, resume: bool = False) -> subprocess.Popen[str]:
        words = ("--resume", run) if resume else ("byte-lm", "--out", run, "--text", self.text)
        return subprocess.Popen(
            self.words(*words, *args, ranks=ranks),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def run(self, run: Path, *args: object, ranks: int = 1, resume: bool = False, code: int = 0) -> str:
        """Runs to the end, checks the exit code, and returns standard error."""
        process = self.start(run, *args, ranks=ranks, resume=resume)
        _, errors = process.communicate(timeout=200)
        assert process.returncode == code, errors
        return errors


@pytest.fixture(scope="session")
def byte_lm(test_data: Path) -> ByteLm:
    return ByteLm(test_data / "text/tinyshakespeare.txt.gz")


def steps(run: Path) -> dict[int, dict[str, Any]]:
    """The logged training steps; fails when one stands twice."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [row for row in rows if "loss" in row]
    assert len({row["step"] for row in found}) == len(found)
    return {row["step"]: {k: v for k, v in row.items() if k != "seconds"} for row in found}


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)

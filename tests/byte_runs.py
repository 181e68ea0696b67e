"""Runs of the small byte model in real processes (jobs.py), and what their metrics say."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import Job


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

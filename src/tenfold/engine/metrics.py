"""What a run says while it runs: one JSON object a line on disk, a progress line for people, TensorBoard on request.

    metrics = Metrics(run_folder, total=1000, tensorboard=False)
    metrics.keep_until(step)                 # after a resume: later lines belong to steps that are run again
    metrics.log(step, {"loss": 1.5})
    metrics.advance(step, loss=1.5)          # progress, rate and time left on standard error

A killed run loses the line that was being written at most.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenfold.data.atomic import write_atomic
from tenfold.errors import MissingExtra, storage_error

PLAIN_EVERY = 10.0  # seconds between progress lines when standard error is not a terminal


class Metrics:
    """The log of one run; only rank 0 makes one."""

    def __init__(self, folder: Path, total: int, tensorboard: bool = False) -> None:
        self.path, self.total = folder / "metrics.jsonl", total
        self._board = _board(folder) if tensorboard else None
        self._bar, self._task = _bar(total)
        self._started = self._spoken = time.monotonic()
        self._first_step: int | None = None

    def keep_until(self, step: int) -> None:
        """Drops lines of later steps and a torn last line."""
        if self.path.exists():
            kept = [row for row in read_rows(self.path) if row["step"] <= step]
            write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line. A value that is not finite is written as a string, so that the line stays JSON."""
        row = {"step": step, **{k: v if math.isfinite(v) else str(v) for k, v in values.items()}}
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise storage_error(self.path, error) from error
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def advance(self, step: int, **values: float) -> None:
        """Step `step` is done."""
        now = time.monotonic()
        if self._first_step is None:
            self._first_step, self._started = step, now
        words = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, values=words)
        elif now - self._spoken >= PLAIN_EVERY or step == self.total:
            self._spoken = now
            rate = (step - self._first_step) / max(now - self._started, 1e-9)
            left = f"{(self.total - step) / rate / 60:.1f} min left" if rate > 0 else ""
            print(f"step {step}/{self.total}  {words}  {rate:.2f} steps/s  {left}", file=sys.stderr, flush=True)

    def say(self, message: str) -> None:
        """One line for people, above the progress bar."""
        if self._bar is not None:
            self._bar.console.print(message, highlight=False)
        else:
            print(message, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._board is not None:
            self._board.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; a torn last line (the writer was killed) is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        rows.append(row)
    return rows


def _bar(total: int) -> tuple[Any, Any]:
    if not sys.stderr.isatty():
        return None, None
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
    figures = TextColumn("{task.fields[values]}")
    bar = Progress(
        TextColumn("training"), BarColumn(), MofNCompleteColumn(), *times, figures, console=Console(stderr=True)
    )
    bar.start()
    return bar, bar.add_task("train", total=total, values="")


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra("tensorboard", "track", "trainer.tensorboard is on") from error
    return SummaryWriter(str(folder / "tensorboard"))

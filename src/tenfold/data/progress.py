"""Progress bar of long work on standard error: rich on a terminal, a plain line every ten seconds otherwise.

    for image in track(images, "decoding", len(images)): ...

    with Progress("tiles", total=400, done=120) as progress:
        progress.advance()
        progress.tick()          now and then while nothing finishes

Nothing is drawn for work that is over before the first line is due.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
EVERY = 10.0  # seconds between plain lines


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yields `items` and shows how many of `total` are done, the rate and the time left."""
    with Progress(label, total) as progress:
        for item in items:
            yield item
            progress.advance()


class Progress:
    """Counts to `total`; `done` is what an earlier run had finished and does not enter the rate. Without `total` work
    left it says nothing."""

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label, self.total, self.done, self.before = label, total, done, done
        self._bar: Any = None

    def __enter__(self) -> Progress:
        self._started = self._told = time.monotonic()
        if self.done < self.total and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(self.label, total=self.total, completed=self.done, rate="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.done > self.before and self._told > self._started:  # short work stays silent when no one watches
            self._say(f"in {_clock(time.monotonic() - self._started)}")

    def advance(self) -> None:
        self.done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=f"{self.rate:.1f}/s")
        self.tick()

    def tick(self) -> None:
        """Says where the work stands, if the last time was long ago."""
        if self._bar is None and time.monotonic() - self._told >= EVERY:
            left = (self.total - self.done) / self.rate if self.rate else None
            self._say("no time left yet" if left is None else f"{_clock(left)} left")

    @property
    def rate(self) -> float:
        """Finished per second, in this run."""
        return (self.done - self.before) / max(1e-9, time.monotonic() - self._started)

    def _say(self, end: str) -> None:
        self._told = time.monotonic()
        print(f"{self.label}: {self.done} of {self.total}, {self.rate:.2f}/s, {end}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

"""Signals that ask a run to stop: remembered, answered between two steps, so that the state on disk is whole.

    with Watch() as watch:
        for step in ...:
            if watch.requested: save and leave with code 75
            with watch.interruptible(): score = task.validate(model)      # long, and changes no state

SIGTERM and SIGUSR2 come from schedulers (Slurm sends the latter before a time limit), SIGINT from a keyboard. Asking again
changes nothing while the state is being written; a third SIGINT is a person who means it, and raises KeyboardInterrupt.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class StopRequested(Exception):
    """A signal arrived inside `interruptible`. The trainer turns it into a saved state and Preempted."""


class Watch:
    """Installs the handlers for the length of the block. Outside the main thread it installs none."""

    def __init__(self) -> None:
        self.requested: str | None = None  # the first signal's name
        self._interruptible = False
        self._interrupts = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Watch:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = self.requested or signal.Signals(number).name
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts >= 3:
                raise KeyboardInterrupt
        if self._interruptible:
            self._interruptible = False
            raise StopRequested(self.requested)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Work that may be broken off anywhere: a signal raises StopRequested out of it, or at once if one has come."""
        if self.requested:
            raise StopRequested(self.requested)
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

"""Circuit breaker of disaggregated prefill, with exponential back-off: a peer that does not answer is tried again later.

    breaker = CircuitBreaker()
    if breaker.closed: ...                              ask it, and say `succeeded()` or `failed()`
    elif breaker.take_trial(): ...                      its pause is over: one call may try, beside the work and not before it

Not thread-safe: one event loop calls it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST, LONGEST = 1.0, 60.0  # seconds of the first pause and of the longest; each is twice the one before


class CircuitBreaker:
    """Closed: calls go through. Open: none does, but for one trial after each pause."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._pause, self._until = clock, 0.0, 0.0
        self._trial = False

    @property
    def closed(self) -> bool:
        return self._pause == 0

    def take_trial(self) -> bool:
        """Whether the pause is over and no other call is the trial yet; then this one is."""
        if self._trial or self._clock() < self._until:
            return False
        self._trial = True
        return True

    def succeeded(self) -> None:
        self._trial, self._pause = False, 0.0

    def failed(self) -> None:
        """Of calls that were on their way together the first one opens it; a trial that fails makes the pause longer."""
        if self.closed or self._trial:
            self._pause = min(2 * self._pause or FIRST, LONGEST)
            self._until = self._clock() + self._pause
        self._trial = False

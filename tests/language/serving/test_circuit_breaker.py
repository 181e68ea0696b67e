"""A circuit breaker opens at the first failure, lets one trial through after each pause, and waits longer every time."""

from __future__ import annotations

from tenfold.language.serving.circuit_breaker import LONGEST, CircuitBreaker


def test_it_opens_at_once_and_pauses_get_longer_until_a_trial_succeeds() -> None:
    now = [0.0]
    breaker = CircuitBreaker(lambda: now[0])
    assert breaker.closed
    for _ in range(3):  # on their way together: one pause
        breaker.failed()
    for pause in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, LONGEST, LONGEST):
        assert not breaker.closed
        now[0] += pause - 0.01
        assert not breaker.take_trial()
        now[0] += 0.02
        assert breaker.take_trial()
        assert not breaker.take_trial()  # one at a time
        breaker.failed()
    now[0] += LONGEST
    assert breaker.take_trial()
    breaker.succeeded()
    assert breaker.closed

"""Schedules: continuous, ending where they say, the same shape at any length of run."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tenfold.engine.schedule import Schedule, constant
from tenfold.errors import FieldError

values = st.floats(-10, 10)
curved = st.sampled_from(["linear", "cosine"])


@given(curved, values, values, values, st.integers(100, 2000), st.floats(0, 0.5))
def test_it_starts_near_start_reaches_peak_and_ends_at_final(
    kind: str, start: float, peak: float, final: float, total: int, warmup: float
) -> None:
    schedule = Schedule(kind, peak=peak, start=start, final=final, warmup=warmup)  # type: ignore[arg-type]
    steps = round(warmup * total)
    assert schedule.at(steps, total) == pytest.approx(peak)
    assert schedule.at(total - 1, total) == pytest.approx(final)
    assert schedule.at(total + 5, total) == pytest.approx(final)
    if steps:
        assert schedule.at(0, total) == pytest.approx(start + (peak - start) / (steps + 1))


@given(curved, values, values, values, st.integers(200, 2000), st.floats(0, 0.5))
def test_no_step_jumps(kind: str, start: float, peak: float, final: float, total: int, warmup: float) -> None:
    schedule = Schedule(kind, peak=peak, start=start, final=final, warmup=warmup)  # type: ignore[arg-type]
    line = [schedule.at(step, total) for step in range(total)]
    steps = round(warmup * total)
    up, down = abs(peak - start) / (steps + 1), abs(final - peak) / (total - steps - 1) * math.pi / 2
    for step, (before, after) in enumerate(itertools.pairwise(line)):
        assert abs(after - before) <= (up if step < steps else down) + 1e-9
    assert min(start, peak, final) - 1e-9 <= min(line)
    assert max(line) <= max(start, peak, final) + 1e-9


@given(curved, st.integers(50, 400), st.floats(0.0, 0.5), st.floats(0.05, 0.9))
def test_a_short_run_keeps_the_shape_of_a_long_one(kind: str, total: int, warmup: float, where: float) -> None:
    schedule = Schedule(kind, peak=1.0, final=0.1, warmup=warmup)  # type: ignore[arg-type]
    assume(abs(where - warmup) > 0.05)  # the corner itself is rounded to a step
    short, long = schedule.at(round(where * total), total), schedule.at(round(where * total * 100), total * 100)
    assert short == pytest.approx(long, abs=4 * math.pi / total / max(0.1, min(warmup or 1, 1 - warmup)))


@given(st.integers(0, 100), st.integers(1, 100), st.integers(200, 400))
def test_a_fraction_is_the_same_as_its_steps(warmup: int, decay: int, total: int) -> None:
    steps = Schedule("linear", warmup=warmup, decay=decay)
    shares = Schedule("linear", warmup=warmup / total, decay=decay / total)
    assert [steps.at(s, total) for s in range(total)] == [shares.at(s, total) for s in range(total)]


@given(st.integers(1, 30), st.integers(0, 40))
def test_after_its_decay_it_stays_at_final(decay: int, warmup: int) -> None:
    schedule = Schedule("cosine", peak=2.0, final=0.5, warmup=warmup, decay=decay)
    assert schedule.at(warmup + decay, 1000) == pytest.approx(0.5)
    assert schedule.at(999, 1000) == pytest.approx(0.5)


@given(values, st.integers(1, 50), st.integers(0, 60))
def test_a_constant_is_constant_and_a_run_of_any_length_has_values(value: float, total: int, step: int) -> None:
    assert constant(value).at(step, total) == value
    assert math.isfinite(Schedule("cosine", warmup=0.3).at(step, total))


@pytest.mark.parametrize("name", ["peak", "start", "final", "warmup", "decay"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(name: str, value: float) -> None:
    with pytest.raises(FieldError, match=f"schedule.{name} = "):
        Schedule(**{name: value})


@pytest.mark.parametrize("value", [-1, -0.1, 1.5])
def test_a_length_is_steps_or_a_share(value: float) -> None:
    with pytest.raises(FieldError, match=r"number of steps \(int >= 0\) or a share"):
        Schedule(warmup=value)

"""Server metrics in Prometheus' format: every request is counted once, and the number of series is bounded."""

from __future__ import annotations

import pytest

from tenfold.serve.metrics import Metrics


def value(metrics: Metrics, line: str) -> float:
    """The number of one series; 0 when it is not on the page."""
    found = [row for row in metrics.page().decode().splitlines() if row.startswith(line + " ")]
    return float(found[0].split()[-1]) if found else 0.0


def test_a_request_is_counted_with_its_status_and_its_time_also_when_it_breaks() -> None:
    metrics = Metrics()
    with metrics.request({"method": "POST"}) as seen:
        seen.status = 200
    with pytest.raises(KeyError), metrics.request({"method": "POST"}) as seen:
        seen.status = 500
        raise KeyError
    with metrics.request({"method": "GET"}):
        pass  # its client vanished before there was a status
    assert value(metrics, 'tenfold_requests_total{method="POST",status="200"}') == 1
    assert value(metrics, 'tenfold_requests_total{method="POST",status="500"}') == 1
    assert value(metrics, 'tenfold_requests_total{method="GET",status="499"}') == 1
    assert value(metrics, "tenfold_request_seconds_count") == 3


def test_made_up_methods_share_one_series() -> None:
    metrics = Metrics()
    for number in range(50):
        with metrics.request({"method": f"MADE-UP-{number}"}) as seen:
            seen.status = 405
    assert value(metrics, 'tenfold_requests_total{method="other",status="405"}') == 50
    assert metrics.page().decode().count("tenfold_requests_total{") == 1


def test_a_gauge_that_is_read_says_the_number_of_the_moment() -> None:
    metrics, free = Metrics(), [7.0]
    metrics.gauge("free_pages", "pages that nobody holds", lambda: free[0])
    assert value(metrics, "tenfold_free_pages") == 7
    free[0] = 3.0
    assert value(metrics, "tenfold_free_pages") == 3


def test_counters_of_two_servers_do_not_mix_and_a_name_stands_once_in_each() -> None:
    first, second = Metrics(), Metrics()
    for metrics in (first, second):
        metrics.counter("drafts", "drafts that were verified").inc(2)
    first.refused(429)
    assert value(first, "tenfold_drafts_total") == value(second, "tenfold_drafts_total") == 2
    assert value(first, 'tenfold_refused_requests_total{status="429"}') == 1
    assert value(second, 'tenfold_refused_requests_total{status="429"}') == 0
    with pytest.raises(ValueError, match="drafts"):
        first.counter("drafts", "again")


def test_a_histogram_puts_every_time_into_its_bucket() -> None:
    metrics = Metrics()
    histogram = metrics.histogram("step_seconds", "seconds of a step", (0.1, 1.0))
    for seconds in (0.05, 0.5, 5.0):
        histogram.observe(seconds)
    counts = [value(metrics, f'tenfold_step_seconds_bucket{{le="{edge}"}}') for edge in ("0.1", "1.0", "+Inf")]
    assert counts == [1, 2, 3]

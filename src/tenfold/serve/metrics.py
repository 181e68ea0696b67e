"""Prometheus metrics of a server at `/metrics`: requests, refusals, seconds, and what a wing adds.

    metrics = Metrics()
    metrics.counter("spec_decode_num_drafts", "drafts that were verified").inc()

Names carry the prefix `tenfold_`. Every application has a registry of its own, so two in one process do not mix.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenfold.errors import MissingExtra

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


@dataclass
class Seen:
    """One request: its status once it has one (499: the client vanished before)."""

    status: int = 499


class Metrics:
    """Counters of the requests, and those that a wing adds."""

    def __init__(self) -> None:
        try:
            from prometheus_client import CollectorRegistry
        except ImportError as error:
            raise MissingExtra("prometheus-client", "serve", "it counts what a server does") from error
        self.registry = CollectorRegistry()
        self.requests = self.counter("requests", "requests by method and status", ("method", "status"))
        self.refusals = self.counter("refused_requests", "requests refused by a limit, by status", ("status",))
        self.seconds = self.histogram("request_seconds", "seconds from the first byte to the last", SECONDS)
        self.running = self.gauge("running_requests", "requests in the application")
        self.waiting = self.gauge("waiting_requests", "requests in the queue")

    def counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        """A count that only grows; Prometheus adds `_total` to its name."""
        from prometheus_client import Counter

        return Counter(f"tenfold_{name}", text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, read: Callable[[], float] | None = None) -> Gauge:
        """A number that goes up and down; with `read` it is read whenever the page is asked for."""
        from prometheus_client import Gauge

        gauge = Gauge(f"tenfold_{name}", text, registry=self.registry)
        if read is not None:
            gauge.set_function(read)
        return gauge

    def histogram(self, name: str, text: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        from prometheus_client import Histogram

        return Histogram(f"tenfold_{name}", text, buckets=buckets, registry=self.registry)

    @contextmanager
    def request(self, scope: Mapping[str, Any]) -> Iterator[Seen]:
        """Counts one request, whatever becomes of it."""
        seen, start = Seen(), time.perf_counter()
        try:
            yield seen
        finally:
            # A made-up method must not become a label of its own: the number of series is bounded.
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.requests.labels(method, str(seen.status)).inc()
            self.seconds.observe(time.perf_counter() - start)

    def refused(self, status: int) -> None:
        self.refusals.labels(str(status)).inc()

    def page(self) -> bytes:
        """The text that a scraper reads."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)

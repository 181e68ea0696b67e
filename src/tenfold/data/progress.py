"""Progress of long work on standard error: a bar on a terminal, a plain line now and then elsewhere.

    for image in track(images, "decoding"): ...

Short work stays silent when nobody watches.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import TypeVar

T = TypeVar("T")
EVERY = 10.0  # seconds between plain lines


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yields `items` and shows how many of `total` are done, the rate and the time left."""
    if sys.stderr.isatty():
        yield from _bar(items, what, total)
        return
    start = last = monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = monotonic()
        if now - last >= EVERY:
            last, rate = now, done / (now - start)
            left = (total - done) / rate
            print(f"{what}: {done:,} of {total:,}, {rate:.3g}/s, {left:.0f} s left", file=sys.stderr, flush=True)


def _bar(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    start = monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        for done, item in enumerate(items, 1):
            yield item
            rate = done / max(monotonic() - start, 1e-9)
            progress.update(task, advance=1, description=f"{what}, {rate:.3g}/s")

"""How a comparison is shown and kept. A benchmark's `run()` returns

    {"title": str, "rows": [{...}, ...], "notes": [str, ...]}

with both sides, the ratio and the physical limit among its rows; `save` adds it to docs/benchmarks with date, commit
and machine, because a number without them cannot be believed later.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from tenfold.data.atomic import write_atomic
from tenfold.engine.provenance import commit, machine
from tenfold.engine.report import table_markdown


def interleave(
    sides: dict[str, Callable[[], object]],
    rounds: int = 9,
    warmup: int = 2,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every side, measured in turns so that a drift of the machine's speed falls on all alike. For work of one
    thread `time.thread_time` leaves out what other processes take."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warmup + rounds):
        for name, work in sides.items():
            start = clock()
            work()
            if turn >= warmup:
                seconds[name].append(clock() - start)
    return seconds


@contextmanager
def on_threads(count: int = 1) -> Iterator[None]:
    """torch with this many threads, until the end of the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ratio(ours: Sequence[float], peer: Sequence[float]) -> tuple[float, float, float]:
    """Median, smallest and largest of peer / ours, pair by pair: above 1 is faster than the peer."""
    ratios = sorted(p / o for o, p in zip(ours, peer, strict=True))
    return median(ratios), ratios[0], ratios[-1]


def present(name: str, result: dict[str, Any]) -> str:
    """The result as Markdown, for a terminal and for the page alike."""
    lines = [f"## {result.get('title', name)}", "", table_markdown(result["rows"]), ""]
    lines += [f"- {note}" for note in result.get("notes", [])]
    return "\n".join(lines)


def save(folder: Path, name: str, result: dict[str, Any]) -> Path:
    """Puts the newest measurement on top of folder/NAME.md."""
    path = folder / f"{name}.md"
    older = path.read_text().partition("\n")[2].lstrip("\n") if path.exists() else ""
    stamp = f"*{datetime.date.today().isoformat()}, commit {commit()}, {machine()}, `tenfold bench {name}`*"
    title, _, rest = present(name, result).partition("\n")
    text = f"# tenfold bench {name}\n\n{title}\n\n{stamp}\n{rest}\n"
    write_atomic(path, (text + (f"\n{older}" if older else "")).encode())
    if "picture" in result:  # an SVG that stands beside the pages of the documentation
        write_atomic(folder.parent / "pictures" / f"{name}.svg", result["picture"].encode())
    return path

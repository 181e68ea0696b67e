"""`tenfold bench memory`: the table of a memory layer, forward, backward and optimizer, beside what torch has for it.

The peer is `F.embedding_bag` with per-sample weights, its dense gradient, and fused dense AdamW; ours is `bag`, its row
gradient, and RowAdamW. D 256, 1,024 tokens that read 128 rows each, one thread, several sets of indices in turn so that
none sits in the cache. The limit is what the memory can do: every byte that must move at the speed of a large copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.bench.table import interleave, on_threads, ratio
from tenfold.engine.row_adamw import RowAdamW
from tenfold.kernels.bag import bag
from tenfold.kernels.native import backends
from tenfold.nn.memory import MemoryTable

WIDTH, TOKENS, HITS = 256, 1024, 128
SETS = 3  # of indices, in turn


class _Side:
    """A table with its optimizer, and a step of it."""

    def __init__(self, slots: int, ours: bool, clip: bool = False, width: int = WIDTH) -> None:
        torch.manual_seed(0)
        side = math.isqrt(slots)
        self.table = MemoryTable(side, width).values if ours else nn.Parameter(torch.randn(slots, width) * width**-0.5)
        self.ours, self.clip, self.turn = ours, clip, 0
        kind: Any = RowAdamW if ours else torch.optim.AdamW
        self.optimizer = kind([self.table], lr=1e-3, weight_decay=0.0, **({} if ours else {"fused": True}))
        self.index = [torch.randint(slots, (TOKENS, HITS)) for _ in range(SETS)]
        self.weight = torch.rand(TOKENS, HITS).div_(HITS).requires_grad_()
        self.grad = torch.randn(TOKENS, width)

    def forward(self) -> Tensor:
        self.turn += 1
        index = self.index[self.turn % SETS]
        if self.ours:
            return bag(self.table, index, self.weight)
        return F.embedding_bag(index, self.table, mode="sum", per_sample_weights=self.weight)

    def step(self) -> None:
        self.forward().backward(self.grad)
        gradient = self.table.grad
        if self.clip and gradient is not None:
            values = gradient._values() if gradient.is_sparse else gradient
            values.mul_((1.0 / (values.norm() + 1e-6)).clamp(max=1.0))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.weight.grad = None

    def read(self) -> None:
        with torch.no_grad():
            self.forward()


def run() -> dict[str, Any]:
    with on_threads(1):
        rows, notes = [], []
        for power, clip in ((18, False), (18, True), (20, False), (20, True)):
            rows.append(_against_torch(1 << power, clip, notes))
        rows.append(_forward(1 << 18))
        rows.append(_growth(notes))
    used = {b.name: b.refused_because or "used" for b in backends() if b.name != "torch"}
    notes += [
        f"backend cpp: {used['cpp']}; triton: {used['triton']}; D {WIDTH}, {TOKENS} tokens x {HITS} rows, one thread"
    ]
    return {
        "title": "The table of a memory layer beside torch's embedding bag and dense AdamW",
        "rows": rows,
        "notes": notes,
    }


def _against_torch(slots: int, clip: bool, notes: list[str]) -> dict[str, Any]:
    name = f"step, 2^{slots.bit_length() - 1} slots" + (", clipped" if clip else "")
    if problem := _too_large(slots, 7):
        notes.append(f"{name}: {problem}")
        return {"what": name}
    sides = {"torch": _Side(slots, False, clip), "tenfold": _Side(slots, True, clip)}
    hit = len(sides["tenfold"].index[0].unique())
    seconds = interleave({k: side.step for k, side in sides.items()}, rounds=7)
    del sides
    # Least traffic of a step: the rows read by the tokens, then weight, moments read and written and the gradient of each
    # row once written and once read.
    least = (TOKENS * HITS + 9 * hit) * WIDTH * 4 / _copy_speed()
    return _row(name, seconds, hit / slots, least)


def _forward(slots: int) -> dict[str, Any]:
    sides = {"torch": _Side(slots, False), "tenfold": _Side(slots, True)}
    seconds = interleave({k: side.read for k, side in sides.items()}, rounds=15)
    return _row("bag forward, 2^18 slots", seconds, None, TOKENS * HITS * WIDTH * 4 / _copy_speed())


def _growth(notes: list[str]) -> dict[str, Any]:
    """From 2^20 to 2^22 slots the rows read grow from 12 % of the smaller to 3 % of the larger, hardly in number. Half
    the width, so that a laptop holds both."""
    width = WIDTH // 2
    name = f"step, from 2^20 to 2^22 slots, D {width}"
    if problem := _too_large(1 << 22, 2):
        notes.append(f"{name}: {problem}")
        return {"what": name}
    sides = {"small": _Side(1 << 20, True, width=width), "large": _Side(1 << 22, True, width=width)}
    seconds = interleave({k: side.step for k, side in sides.items()}, rounds=7, warmup=SETS + 1)
    middle, low, high = ratio(seconds["small"], seconds["large"])
    return {
        "what": name,
        "torch ms": None,
        "tenfold ms": 1000 * median(seconds["large"]),
        "ratio": middle,
        "from": low,
        "to": high,
        "mark": "<= 1.5",
    }


def _row(name: str, seconds: dict[str, list[float]], hit: float | None, least: float) -> dict[str, Any]:
    middle, low, high = ratio(seconds["tenfold"], seconds["torch"])
    marks = {"step, 2^18 slots": ">= 2.5", "step, 2^20 slots": ">= 3.5", "bag forward, 2^18 slots": ">= 0.95"}
    return {
        "what": name,
        "rows hit": f"{hit:.0%}" if hit is not None else None,
        "torch ms": 1000 * median(seconds["torch"]),
        "tenfold ms": 1000 * median(seconds["tenfold"]),
        "ratio": middle,
        "from": low,
        "to": high,
        "mark": marks.get(name),
        "limit ms": 1000 * least,
    }


def _copy_speed() -> float:
    """Bytes a second, read and written, of a copy that fits no cache."""
    source = torch.ones(1 << 26)
    target = torch.empty_like(source)

    def timed(work: Callable[[], object]) -> float:
        start = perf_counter()
        work()
        return perf_counter() - start

    return 2 * source.nbytes / median(timed(lambda: target.copy_(source)) for _ in range(5))


def _too_large(slots: int, copies: int) -> str:
    """In words, when so many tables do not fit in the memory that is free."""
    needed, memory = copies * slots * WIDTH * 4, Path("/proc/meminfo")
    if not memory.exists():
        return ""
    free = next(int(line.split()[1]) * 1024 for line in memory.open() if line.startswith("MemAvailable"))
    return f"not measured, {needed / 2**30:.0f} GiB needed, {free / 2**30:.0f} GiB free" if needed > 0.9 * free else ""

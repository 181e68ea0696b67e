"""Ranks as threads that meet at every reduction: real collectives of a global batch without processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from tenfold.engine.parallel import Collectives

Part = TypeVar("Part")


def on_threads(work: Callable[[Part, Collectives], Tensor], parts: Sequence[Part]) -> list[Tensor]:
    """`work(part, ranks)` of every part at the same time; the results in the order of the parts."""
    barrier, slots = threading.Barrier(len(parts), timeout=60), [torch.empty(0)] * len(parts)
    results: list[Tensor] = [torch.empty(0)] * len(parts)

    def meet(rank: int, value: Tensor) -> Tensor:
        slots[rank] = value
        barrier.wait()
        stacked = torch.stack(slots)
        barrier.wait()
        return stacked

    class Threads(Collectives):
        def all_reduce_sum(self, value: Tensor) -> Tensor:
            return meet(self.rank, value).sum(0)

        def maximum(self, value: Tensor) -> Tensor:
            return meet(self.rank, value).amax(0)

    def run(rank: int) -> None:
        results[rank] = work(parts[rank], Threads(rank, len(parts)))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results

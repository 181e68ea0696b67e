"""Which rank was lost. A collective that fails says only that a connection closed; the ranks' heartbeats say whose.

Every rank counts in the group's store once a second. After a failure, the ranks whose count stands still are the lost
ones.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import torch.distributed as dist

from tenfold.engine.parallel import Place

PERIOD, PATIENCE = 1.0, 3.5  # seconds


class Heartbeat:
    """Beats from construction until `stop`."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._stop = threading.Event()
        self._store = dist.distributed_c10d._get_default_store().clone()  # pyright: ignore[reportAttributeAccessIssue]
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        with suppress(RuntimeError):  # the store went with its host: `lost` finds that out
            while not self._stop.wait(PERIOD):
                self._store.add(self._key(self.place.rank), 1)

    def lost(self) -> list[int]:
        """Ranks that do not beat any more. Rank 0 when the store itself is gone."""
        others = [rank for rank in range(self.place.world) if rank != self.place.rank]
        try:
            before = {rank: self._store.add(self._key(rank), 0) for rank in others}
            time.sleep(PATIENCE)
            return [rank for rank in others if self._store.add(self._key(rank), 0) == before[rank]]
        except RuntimeError:
            return [0]

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(2 * PERIOD)

    @staticmethod
    def _key(rank: int) -> str:
        return f"tenfold/beat/{rank}"

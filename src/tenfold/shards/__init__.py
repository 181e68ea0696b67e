"""map_shards: a function over many items, one output per item, resumable, on this machine or on a Ray cluster.

Public names, imported when they are used; docs/api.md has a line and an example for each. Rooms may move; these stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenfold.registry import public_names

if TYPE_CHECKING:
    from tenfold.shards.executor import FailedShards as FailedShards
    from tenfold.shards.executor import Shards as Shards
    from tenfold.shards.executor import map_function as map_function
    from tenfold.shards.executor import map_shards as map_shards

__all__ = ["FailedShards", "Shards", "map_function", "map_shards"]

__getattr__, __dir__ = public_names(
    __name__,
    {
        "tenfold.shards.executor": "FailedShards Shards map_function map_shards",
    },
)

"""map_shards: a function over many items, one output per item, resumable, on this machine or on a Ray cluster."""

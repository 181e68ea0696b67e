"""Targets by name: where the weights of a model are that `tenfold samples` fetches.

    path = locate("smollm2-135m-instruct")              or a file, folder or hub id, which is returned as it is
"""

from __future__ import annotations

from pathlib import Path

from tenfold.data.samples import fetch
from tenfold.errors import unknown_name

NAMED = {"smollm2-135m-instruct": ("smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}  # name -> sample, its file


def locate(name: str | Path) -> str | Path:
    """Fetches a named model's sample where it is not yet in the cache. Raises UsageError for a bare unknown name."""
    word = str(name)
    if word in NAMED:
        sample, file = NAMED[word]
        return fetch(sample) / file
    if "/" not in word and not Path(word).exists():
        raise unknown_name("target", word, NAMED, "Or give a weights file, a folder or a hub id (owner/name).")
    return name

"""What a hostile input is allowed to cost before it is refused: 2 s of CPU time and 200 MiB of memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tenfold.errors import TenfoldError


@contextmanager
def refused(kind: type[TenfoldError], match: str) -> Iterator[None]:
    """An error of this kind within 2 s, for less than 200 MiB (the peak of this process, which never falls)."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(kind, match=match):
        yield
    assert time.process_time() - start < 2
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200

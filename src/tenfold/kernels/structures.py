"""C structures as ctypes takes them, filled by field name, with a handshake of their sizes when a library is loaded.

    class Pair(CStructure):
        _fields_ = [("first", c_int64), ("second", c_int64)]

    Pair(first=1, second=2)                          Pair(1, 2) and Pair(first=1) are errors
    check_sizes(library, "pair.cpp", [Pair])         the library exports `int64_t size_of(const char* structure)`

A structure filled by position, or one field short of what the library reads, gives wrong numbers or a crash and no message.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

from tenfold.errors import UsageError


class CStructure(ctypes.Structure):
    """Every field has to be named; one made without arguments is all zeros."""

    def __init__(self, **fields: Any) -> None:
        if fields:
            absent = [name for name, *_ in self._fields_ if name not in fields]
            if absent:
                raise TypeError(f"{type(self).__name__} lacks its fields {', '.join(absent)}")
        super().__init__(**fields)


def check_sizes(library: ctypes.CDLL, source: str, structures: Iterable[type[ctypes.Structure]]) -> None:
    """Raises UsageError unless each structure has the size that the library compiled from `source` gives it."""
    size_of = library.size_of
    size_of.argtypes, size_of.restype = [ctypes.c_char_p], ctypes.c_int64
    for structure in structures:
        name, ours = structure.__name__, ctypes.sizeof(structure)
        theirs = size_of(name.encode())
        if theirs != ours:
            known = f"takes {theirs} bytes for {name}" if theirs >= 0 else f"knows no {name}"
            raise UsageError(f"{source} {known}, and Python fills {ours}: the two declarations differ.")

r"""File names of strangers: as text that every file and terminal takes, and as the names of the files that are made from them.

    readable_name(Path("caf\udce9.jpg"))      'caf\\xe9.jpg': bytes that are not UTF-8 are written as \xNN
    output_name(3, "x/../../p_0", ".png")     '0003-p_0.png': one part, that never leaves its folder and fits into 255 bytes

Names come from disks with other encodings, and from the columns of data sets, where anything can stand.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

LONGEST = 200  # bytes of a file name that is made here, which leaves room for the prefix of a temporary
UNWANTED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # control characters and line ends


def readable_name(path: Path | str) -> str:
    r"""A path as valid text: bytes that are not UTF-8 (lone surrogates in Python) are written as \xNN."""
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape" if _from_bytes(text) else "backslashreplace").decode(
            "utf-8", "backslashreplace"
        )
    return text


def output_name(number: int, name: str, ending: str) -> str:
    """The name of the file made from the image `name`: its number, which tells equal names apart, then the last part of the
    name without what a file name cannot hold, cut to LONGEST bytes."""
    last = re.split(r"[/\\]", os.fspath(name))[-1]
    last = UNWANTED.sub("_", last.encode("utf-8", "replace").decode())
    prefix = f"{number:04d}-"
    room = LONGEST - len(prefix) - len(ending.encode())
    return prefix + last.encode()[:room].decode("utf-8", "ignore") + ending


def _from_bytes(text: str) -> bool:
    """Whether every lone surrogate is one of those that Python makes of bytes in a file name."""
    return all(not 0xD800 <= ord(c) <= 0xDFFF or 0xDC80 <= ord(c) <= 0xDCFF for c in text)

"""The commands that the README and the pages of docs show, as words."""

from __future__ import annotations

import re


def commands(text: str) -> list[list[str]]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M)
    shown = [block for language, block in blocks if not language]
    lines = [line.split("  ")[0].split("#")[0] for block in shown for line in block.splitlines()]
    return [line.split()[1:] for line in lines if line.startswith("tenfold ")]

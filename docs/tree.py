"""The generated parts of README.md, written from the code: the table of the ten systems and the file tree.

python docs/tree.py            rewrite them;  tests/test_readme.py fails when they are stale
"""

from __future__ import annotations

import ast
import re
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def tree() -> str:
    """Every room with its own line, and below it one line per source file: the first sentence of the docstring."""
    lines: list[str] = []
    files = (p for p in (ROOT / "src/tenfold").rglob("*.py") if p.name != "__main__.py")
    for room, paths in groupby(sorted(files, key=lambda p: (str(p.parent), p.name)), key=lambda p: p.parent):
        lines += ["", f"{f'{room.relative_to(ROOT)}/':<41}{summary(room / '__init__.py')}"]
        lines += [f"  {path.name:<25}{summary(path)}" for path in paths if path.name != "__init__.py"]
    return "\n".join(lines[1:])


def summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(re.split(r"\.\s|\.$|:\n|\n\n", docstring, maxsplit=1)[0].split())


def table() -> str:
    from tenfold.systems import SYSTEMS

    rows = ["| # | system | wing | today | type |", "|---|---|---|---|---|"]
    for s in SYSTEMS:
        commands = "<br>".join(f"`{command}`" for command in s.commands)
        rows.append(f"| {s.number} | {s.name} | {s.wing} | **{s.state}**: {s.note} | {commands} |")
    return "\n".join(rows)


def render(text: str) -> str:
    """README with both parts renewed."""
    text = re.sub(r"(<!-- systems -->\n).*?(\n<!-- end -->)", lambda m: m[1] + table() + m[2], text, flags=re.S)
    return re.sub(r"(<!-- files -->\n```\n).*?(\n```\n<!-- end -->)", lambda m: m[1] + tree() + m[2], text, flags=re.S)


if __name__ == "__main__":
    README.write_text(render(README.read_text()))

"""Writes the parts of README.md that follow from the code: the table of systems and the file tree.

    python docs/tree.py            rewrite them;  tests/test_readme.py fails when they are stale
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def tree() -> str:
    """One line per source file: its path and the first sentence of its docstring."""
    lines = []
    folder = None
    for path in sorted((ROOT / "src/tenfold").rglob("*.py"), key=lambda p: (str(p.parent), p.name)):
        if path.name == "__main__.py":
            continue
        room = path.parent.relative_to(ROOT)
        if room != folder:
            folder = room
            lines.append(f"{room}/")
        if path.name == "__init__.py" and path.parent.name != "tenfold":
            continue
        summary = re.split(r"\.\s|\.$|:\n|\n\n", ast.get_docstring(ast.parse(path.read_text())) or "", maxsplit=1)[0]
        lines.append(f"  {path.name:<23}{' '.join(summary.split())}")
    return "\n".join(lines)


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
    return re.sub(
        r"(<!-- files -->\n```\n).*?(\n```\n<!-- end -->)", lambda m: m[1] + tree() + m[2], text, flags=re.S
    )


if __name__ == "__main__":
    README.write_text(render(README.read_text()))

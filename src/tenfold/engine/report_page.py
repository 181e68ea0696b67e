"""HTML template, CSS theme and tables of every report: training runs, evaluations and the tour share this one page.

    page_html("dinov3-mini", "<h1>dinov3-mini</h1>" + table_html(rows))
    table_markdown(rows)

Colours are CSS variables with a light and a dark value, which the reader's system chooses between; drawings name the same
variables (`var(--ink)`), so a plot inside the page follows the page. A drawing that stands in a file of its own brings the
variables along: `standalone_svg`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Row = Mapping[str, Any]

# name: (light, dark). `line0` to `line5` are the series of a plot, in order.
COLORS = {
    "page": ("#fdfdfb", "#16181b"),
    "ink": ("#222222", "#e6e6e2"),
    "soft": ("#666666", "#a5a7a9"),
    "rule": ("#dddbd2", "#393d42"),
    "fill": ("#f1f0ea", "#22262b"),
    "good": ("#1a7f37", "#4cc26b"),
    "line0": ("#1f6f8b", "#5db9d6"),
    "line1": ("#c8374c", "#f4838f"),
    "line2": ("#4d8a33", "#9ad07b"),
    "line3": ("#7d5a91", "#c6a4d9"),
    "line4": ("#ad6416", "#e8ab5e"),
    "line5": ("#4a4e69", "#aab0d6"),
}

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<style>$style</style></head>
<body>
$body
</body></html>
"""

STYLE = """
body{font:16px/1.55 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;
color:var(--ink);background:var(--page)}
h1{font-size:1.7rem}h2{font-size:1.2rem;margin-top:2.2rem}small{color:var(--soft);font-weight:normal}
figure{margin:1.2rem 0;overflow-x:auto}figcaption{color:var(--soft);font-size:.9rem}
table{border-collapse:collapse;margin:.5rem 0}
td,th{padding:.25rem .9rem .25rem 0;border-bottom:1px solid var(--rule);text-align:left;vertical-align:top;white-space:pre-line}
th{vertical-align:bottom}
.number{text-align:right;font-variant-numeric:tabular-nums;padding:.25rem .9rem}
img,svg{max-width:100%;height:auto}svg text{font-family:system-ui,sans-serif}
code,pre{background:var(--fill);padding:.1rem .4rem;border-radius:3px}pre{padding:.3rem .6rem;overflow-x:auto}
"""


def theme() -> str:
    """The CSS variables, light by default and dark where the reader's system is."""

    def values(which: int) -> str:
        return ";".join(f"--{name}:{pair[which]}" for name, pair in COLORS.items())

    return f":root{{{values(0)}}}@media (prefers-color-scheme:dark){{:root{{{values(1)}}}}}"


def paint(name: str) -> str:
    """A colour of the theme for a drawing, in CSS; light where no page says otherwise."""
    return f"var(--{name},{COLORS[name][0]})"


def page_html(title: str, body: str) -> str:
    """A whole page that needs nothing from the network. `body` is HTML; the title is escaped here."""
    parts = {"$title": escape(title), "$style": theme() + STYLE, "$body": body}
    return re.sub(r"\$(?:title|style|body)", lambda found: parts[found[0]], PAGE)


def standalone_svg(svg: str) -> str:
    """A drawing of a page as a file of its own, with the theme's colours and its background inside."""
    head, bracket, rest = svg.partition(">")
    style = f"<style>{theme()}svg{{background:var(--page);font-family:system-ui,sans-serif}}</style>"
    return f"{head}{bracket}{style}{rest}".rstrip() + "\n"


# ---------------------------------------------------------------------------------------------------------------- tables

_NUMBER = re.compile(r"[-+−]?(\d[\d,]*)?\.?\d+(e[-+]?\d+)?\s?(%|x|×|[kMG]?B|[mµ]?s|min|MiB|GiB)?")


def table_markdown(rows: Sequence[Row]) -> str:
    """Text columns to the left, columns of numbers to the right."""
    if not rows:
        return "(no rows)"
    columns = list(rows[0])
    cells = {c: _cells(rows, c) for c in columns}
    marks = ["---:" if is_numeric(rows, c) else "---" for c in columns]
    lines = ["| " + " | ".join(columns) + " |", "|" + "|".join(marks) + "|"]
    lines += ["| " + " | ".join(_one_line(cells[c][i]) for c in columns) + " |" for i in range(len(rows))]
    return "\n".join(lines)


def _one_line(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")


def table_html(rows: Sequence[Row]) -> str:
    """Text columns to the left, columns of numbers to the right in figures of one width."""
    if not rows:
        return "<p>(no rows)</p>"
    columns = list(rows[0])
    cells = {c: _cells(rows, c) for c in columns}
    kind = {c: ' class="number"' if is_numeric(rows, c) else "" for c in columns}
    head = "".join(f"<th{kind[c]}>{escape(c)}</th>" for c in columns)
    body = "".join(
        "<tr>" + "".join(f"<td{kind[c]}>{escape(cells[c][i])}</td>" for c in columns) + "</tr>"
        for i in range(len(rows))
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def is_numeric(rows: Sequence[Row], column: str) -> bool:
    """Whether a column holds numbers (with or without a unit) and nothing else but empty cells."""
    values = [row.get(column, "") for row in rows]
    given = [value for value in values if value not in ("", "-", None)]
    return bool(given) and all(_is_number(value) for value in given)


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return _NUMBER.fullmatch(value.strip()) is not None
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cells(rows: Sequence[Row], column: str) -> list[str]:
    """The texts of a column. Floats of like size get the same number of decimals, four digits for the largest."""
    values = [row.get(column, "") for row in rows]
    sizes = [abs(v) for v in values if isinstance(v, float) and math.isfinite(v) and v != 0]
    decimals = max(0, 3 - math.floor(math.log10(max(sizes)))) if sizes else 0
    alike = bool(sizes) and decimals <= 6 and min(sizes) * 10**decimals >= 10

    def text(value: Any) -> str:
        if not isinstance(value, float) or not math.isfinite(value):
            return "" if value is None else str(value)
        if alike:
            return f"{value:.{decimals}f}"
        return f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"

    return [text(value) for value in values]

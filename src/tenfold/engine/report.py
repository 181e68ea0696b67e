"""Reports: numbers as JSON, Markdown and one self-contained HTML page with plots and pictures.

    report = Report("dinov3-mini")
    report.table("k-NN", [{"network": "trained", "k-NN %": 46.6}, {"network": "raw pixels", "k-NN %": 38.2}])
    report.plot("loss", {"dino": [(0, 5.5), (100, 4.9)]}, x="step", y="nats")
    report.image("PCA of patch tokens", png_bytes)
    report.write(folder)                 # report.json, report.md, report.html

A page needs nothing from the network: plots are SVG, pictures are data URIs.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from tenfold.data.atomic import write_atomic

Series = Sequence[tuple[float, float]]
COLORS = ("#1f6f8b", "#d1495b", "#6a994e", "#8d6a9f", "#c17c2f", "#4a4e69")

STYLE = """
body{font:16px/1.55 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fdfdfb}
h1{font-size:1.7rem}h2{font-size:1.2rem;margin-top:2rem}table{border-collapse:collapse;margin:.7rem 0}
td,th{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}
img{max-width:100%;image-rendering:auto}figure{margin:1rem 0}figcaption{color:#666;font-size:.9rem}
code,pre{background:#f1f0ea;padding:.1rem .3rem;border-radius:3px}svg text{font:12px system-ui,sans-serif;fill:#444}
"""


@dataclass
class Report:
    """Collects parts in order. Table rows are mappings with the same keys; numbers are shown with 4 digits."""

    title: str
    parts: list[dict[str, Any]] = field(default_factory=list)

    def text(self, text: str) -> None:
        self.parts.append({"kind": "text", "text": text})

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.parts.append({"kind": "table", "title": title, "rows": [dict(row) for row in rows]})

    def plot(self, title: str, series: Mapping[str, Series], x: str = "step", y: str = "") -> None:
        points = {name: [(float(a), float(b)) for a, b in line] for name, line in series.items()}
        self.parts.append({"kind": "plot", "title": title, "series": points, "x": x, "y": y})

    def image(self, title: str, png: bytes) -> None:
        self.parts.append({"kind": "image", "title": title, "png": png})

    def svg(self, title: str, svg: str) -> None:
        """A drawing, as SVG made by the caller (its texts escaped)."""
        self.parts.append({"kind": "svg", "title": title, "svg": svg})

    def html(self) -> str:
        body = "\n".join(part_html(part) for part in self.parts)
        return page_html(self.title, f"<h1>{escape(self.title)}</h1>\n{body}")

    def markdown(self) -> str:
        lines = [f"# {self.title}", ""]
        for part in self.parts:
            if part["kind"] == "text":
                lines += [part["text"], ""]
            elif part["kind"] == "table":
                lines += [f"## {part['title']}", "", table_markdown(part["rows"]), ""]
            elif part["kind"] == "plot":
                lines += [f"## {part['title']}", ""]
                rows = [
                    {"series": name, "first": line[0][1], "last": line[-1][1], f"{part['x']}s": line[-1][0]}
                    for name, line in part["series"].items()
                    if line
                ]
                lines += [table_markdown(rows), ""]
        return "\n".join(lines)

    def json(self) -> str:
        parts = [{k: v for k, v in part.items() if k != "png"} for part in self.parts]
        return json.dumps({"title": self.title, "parts": parts}, indent=2)

    def write(self, folder: Path) -> Path:
        """Writes the three files (each aside, then renamed) and returns the page's path."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "report.json", self.json().encode())
        write_atomic(folder / "report.md", self.markdown().encode())
        write_atomic(folder / "report.html", self.html().encode())
        return folder / "report.html"


def page_html(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
        f"<body>\n{body}\n</body></html>\n"
    )


def part_html(part: Mapping[str, Any]) -> str:
    """One part as HTML; the tour's page uses it too."""
    if part["kind"] == "text":
        return "".join(f"<p>{escape(p)}</p>" for p in part["text"].split("\n\n"))
    caption = f"<figcaption>{escape(part['title'])}</figcaption>"
    if part["kind"] == "table":
        return f"<figure>{caption}{table_html(part['rows'])}</figure>"
    if part["kind"] == "plot":
        return f"<figure>{caption}{plot_svg(part['series'], part['x'], part['y'])}</figure>"
    if part["kind"] == "svg":
        return f"<figure>{caption}{part['svg']}</figure>"
    uri = base64.b64encode(part["png"]).decode()
    return f'<figure>{caption}<img alt="{escape(part["title"])}" src="data:image/png;base64,{uri}"></figure>'


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "(no rows)"
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(c, "")) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def table_html(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "<p>(no rows)</p>"
    head = "".join(f"<th>{escape(c)}</th>" for c in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(row.get(c, '')))}</td>" for c in rows[0]) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def plot_svg(series: Mapping[str, Series], x: str = "", y: str = "", width: int = 640, height: int = 280) -> str:
    """Lines with axes and a legend, as SVG. Empty series are left out; a flat line is drawn in the middle."""
    lines = {name: line for name, line in series.items() if line}
    if not lines:
        return "<p>(nothing to plot)</p>"
    xs = [a for line in lines.values() for a, _ in line]
    ys = [b for line in lines.values() for _, b in line]
    (x0, x1), (y0, y1) = _span(xs), _span(ys)
    left, right, top, bottom = 56, 12, 10 + 16 * len(lines), 36

    def place(a: float, b: float) -> str:
        px = left + (a - x0) / (x1 - x0) * (width - left - right)
        py = height - bottom - (b - y0) / (y1 - y0) * (height - top - bottom)
        return f"{px:.1f},{py:.1f}"

    marks = []
    for i in range(5):
        value = y0 + (y1 - y0) * i / 4
        py = place(x0, value).split(",")[1]
        marks.append(f'<line x1="{left}" x2="{width - right}" y1="{py}" y2="{py}" stroke="#e4e2da"/>')
        marks.append(f'<text x="{left - 6}" y="{py}" text-anchor="end" dominant-baseline="middle">{value:.4g}</text>')
        value = x0 + (x1 - x0) * i / 4
        px = place(value, y0).split(",")[0]
        marks.append(f'<text x="{px}" y="{height - bottom + 16}" text-anchor="middle">{value:.4g}</text>')
    for i, (name, line) in enumerate(lines.items()):
        color = COLORS[i % len(COLORS)]
        points = " ".join(place(a, b) for a, b in line)
        marks.append(f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{points}"/>')
        if len(line) == 1:
            px, py = points.split(",")
            marks.append(f'<circle cx="{px}" cy="{py}" r="3.5" fill="{color}"/>')
        marks.append(f'<rect x="{left + 8}" y="{4 + 16 * i}" width="12" height="12" fill="{color}"/>')
        marks.append(f'<text x="{left + 26}" y="{14 + 16 * i}">{escape(name)}</text>')
    axes = (
        f'<text x="{width / 2}" y="{height - 4}" text-anchor="middle">{escape(x)}</text>'
        f'<text transform="translate(12,{height / 2}) rotate(-90)" text-anchor="middle">{escape(y)}</text>'
    )
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img">{"".join(marks)}{axes}</svg>'


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        return low - 0.5, high + 0.5
    return low, high

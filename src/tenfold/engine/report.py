"""Reports of training runs and evaluations: numbers as JSON, Markdown and one self-contained HTML page with plots and pictures.

    report = Report("dinov3-mini")
    report.table("k-NN", [{"network": "trained", "k-NN %": 46.6}, {"network": "raw pixels", "k-NN %": 38.2}])
    report.plot("loss", {"dino": [(0, 5.5), (100, 4.9)]}, x="step", y="nats")
    report.image("PCA of patch tokens", png_bytes)
    report.write(folder)                 # report.json, report.md, report.html

Plots are SVG by matplotlib, which only this file imports, and only when something is plotted. Their texts stay text and
their colours are the page's CSS variables (report_page.py). The same numbers give the same bytes. Pictures are data URIs.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from tenfold.data.atomic import write_atomic
from tenfold.engine.report_page import COLORS, page_html, paint, table_html, table_markdown

Series = Sequence[tuple[float, float]]
Mark = Literal["line", "dot", "ring"]


@dataclass
class Report:
    """Collects parts in order. Table rows are mappings with the same keys; numbers are shown with 4 digits."""

    title: str
    parts: list[dict[str, Any]] = field(default_factory=list)

    def text(self, text: str) -> None:
        """Paragraphs, with an empty line between them."""
        self.parts.append({"kind": "text", "text": text})

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.parts.append({"kind": "table", "title": title, "rows": [dict(row) for row in rows]})

    def plot(
        self, title: str, series: Mapping[str, Series], x: str = "step", y: str = "", marks: Mapping[str, Mark] = {}
    ) -> None:
        """Lines (or the marks named for a series) over a common axis; see `plot_svg`."""
        points = {name: [(float(a), float(b)) for a, b in line] for name, line in series.items()}
        self.parts.append({"kind": "plot", "title": title, "series": points, "x": x, "y": y, "marks": dict(marks)})

    def image(self, title: str, png: bytes) -> None:
        self.parts.append({"kind": "image", "title": title, "png": png})

    def svg(self, title: str, svg: str) -> None:
        """A drawing that is not a plot, as SVG made by the caller (its texts escaped)."""
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


def part_html(part: Mapping[str, Any]) -> str:
    """One part as HTML; the tour's page uses it too."""
    if part["kind"] == "text":
        return "".join(f"<p>{escape(p)}</p>" for p in part["text"].split("\n\n"))
    caption = f"<figcaption>{escape(part['title'])}</figcaption>"
    if part["kind"] == "table":
        return f"<figure>{caption}{table_html(part['rows'])}</figure>"
    if part["kind"] == "plot":
        return f"<figure>{caption}{plot_svg(part['series'], part['x'], part['y'], part['marks'])}</figure>"
    if part["kind"] == "svg":
        return f"<figure>{caption}{part['svg']}</figure>"
    uri = base64.b64encode(part["png"]).decode()
    return f'<figure>{caption}<img alt="{escape(part["title"])}" src="data:image/png;base64,{uri}"></figure>'


# ----------------------------------------------------------------------------------------------------------------- plots

FONT, SPACING, EDGE = 12, 16, 10  # pixels: letters, from label to label, from the drawing's border
LEAD = 24  # pixels from the axes to the labels, for the short lines that lead to them
TICK_STEPS = (1, 2, 2.5, 5, 10)
STAND_IN = {f"#00{i:02x}fe": name for i, name in enumerate(COLORS)}  # colours for matplotlib that become CSS variables
PEN = {name: color for color, name in STAND_IN.items()}
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
RC = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": FONT}


def plot_svg(
    series: Mapping[str, Series],
    x: str = "",
    y: str = "",
    marks: Mapping[str, Mark] = {},
    width: int = 760,
    height: int = 300,
) -> str:
    """Series over a common axis as SVG, each with its name at its end. Values that are not finite and empty
    series are left out; a single value is a dot. `marks`: what a series is drawn as, a line unless said otherwise."""
    given = {
        _printable(name): [point for point in line if all(map(math.isfinite, point))] for name, line in series.items()
    }
    lines = {name: line for name, line in given.items() if line}
    if not lines:
        return "<p>(nothing to plot)</p>"
    names = {name: textwrap.wrap(name, 30) or [" "] for name in lines}
    height = max(height, SPACING * sum(map(len, names.values())) + 80)
    with _matplotlib(repr((lines, x, y, sorted(marks.items()), width, height))):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")
        pen = FigureCanvasAgg(figure).get_renderer()
        axes = figure.add_axes((0, 0, 1, 1), facecolor="none")
        for i, (name, line) in enumerate(lines.items()):
            _draw(axes, line, marks.get(name, "line") if len(line) > 1 else "dot", *_ink(i))
        _set_scales(axes, lines, curves=all(marks.get(name, "line") == "line" for name in lines))
        axes.grid(axis="y", color=PEN["rule"], linewidth=1)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(PEN["soft"])
        texts = [figure.text(0, 0, part, parse_math=False) for parts in names.values() for part in parts]
        texts += [tick for tick in axes.get_yticklabels() if tick.get_text()]
        wide = [text.get_window_extent(pen).width for text in texts]
        labels = sum(map(len, names.values()))
        right = width - EDGE - max(wide[:labels]) - LEAD
        left = EDGE + max(wide[labels:], default=0) + 6
        for text in texts[:labels]:
            text.remove()
        bottom, top = EDGE + FONT + 10 + (FONT + 8 if x else 0), height - EDGE - (FONT + 10 if y else 0)
        axes.set_position((left / width, bottom / height, (right - left) / width, (top - bottom) / height))
        _name_axes(figure, left / width, (left + right) / 2 / width, EDGE / height, (height - EDGE) / height, x, y)
        _name_ends(figure, axes, lines, names, height)
        file = io.StringIO()
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    return _for_a_page(file.getvalue(), width, height)


@contextmanager
def _matplotlib(content: str) -> Iterator[None]:
    """matplotlib with its own defaults instead of the user's, names of SVG parts that follow from the content, and no
    warnings about letters that only the reader's browser has."""
    import matplotlib

    salt = hashlib.sha256(content.encode()).hexdigest()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        settings: Any = matplotlib.rcParams
        settings.update(RC | {"svg.hashsalt": salt})
        yield


def _ink(number: int) -> tuple[str, Any]:
    """Color and dashes of a series: six colors, then the same ones dashed."""
    turn, color = divmod(number, 6)
    return PEN[f"line{color}"], DASHES[turn % len(DASHES)]


def _draw(axes: Any, line: Series, mark: Mark, color: str, dashes: Any) -> None:
    xs, ys = zip(*line)
    if mark == "line":
        axes.plot(xs, ys, color=color, linestyle=dashes, linewidth=2, clip_on=False)
    else:
        face, size = (color, 6) if mark == "dot" else ("none", 11)
        axes.plot(
            xs, ys, color=color, marker="o", linestyle="none", markersize=size, markerfacecolor=face, clip_on=False
        )


def _set_scales(axes: Any, lines: Mapping[str, Series], curves: bool) -> None:
    """Limits and ticks at round numbers."""
    from matplotlib.ticker import MaxNLocator

    xs = [a for line in lines.values() for a, _ in line]
    whole = all(float(a).is_integer() for a in xs)
    across = [float(tick) for tick in MaxNLocator(6, steps=TICK_STEPS, integer=whole).tick_values(min(xs), max(xs))]
    if curves and min(xs) < max(xs):
        axes.set_xlim(min(xs), max(xs))  # a curve ends at the border of the axes, where its name is
        across = [tick for tick in across if min(xs) <= tick <= max(xs)]
    else:
        axes.set_xlim(across[0], across[-1])
    ys = [b for line in lines.values() for _, b in line]
    up = [float(tick) for tick in MaxNLocator(5, steps=TICK_STEPS).tick_values(min(ys), max(ys))]
    axes.set_ylim(up[0], up[-1])  # from round number to round number
    for axis, places in ((axes.xaxis, across), (axes.yaxis, up)):
        axis.set_ticks(places, labels=_tick_texts(places))
        axis.set_tick_params(bottom=False, left=False, pad=6, labelcolor=PEN["soft"])


def _tick_texts(ticks: Sequence[float]) -> list[str]:
    """Every tick of an axis with the decimals that the distance between ticks needs, thousands apart."""
    step = min((abs(b - a) for a, b in pairwise(ticks)), default=1.0)
    decimals = next((d for d in range(5) if abs(round(step, d) - step) < 1e-3 * step), None)
    return [f"{value:g}" if decimals is None else f"{value + 0.0:,.{decimals}f}" for value in ticks]


def _name_axes(figure: Any, left: float, middle: float, bottom: float, top: float, x: str, y: str) -> None:
    """What is across stands below the middle; what is upwards stands above its axis, where it reads without a turn."""
    soft = {"color": PEN["soft"], "parse_math": False}
    if x:
        figure.text(middle, bottom, _printable(x), ha="center", va="bottom", **soft)
    if y:
        figure.text(left, top, _printable(y), ha="left", va="top", **soft)


def _name_ends(
    figure: Any, axes: Any, lines: Mapping[str, Series], names: Mapping[str, list[str]], height: int
) -> None:
    """Writes each name beside the end of its series, moved apart where ends are close, with a thin line that leads there."""
    ends = [axes.transData.transform(max(line)) for line in lines.values()]
    heights = [SPACING * len(names[name]) for name in lines]
    right, bottom = axes.transAxes.transform((1, 0))
    places = spread([y for _, y in ends], heights, low=bottom - FONT / 2, high=height - EDGE)
    across = figure.transFigure.inverted().transform
    for i, (name, (x, y), place) in enumerate(zip(lines, ends, places)):
        color, _ = _ink(i)
        points = [across(point) for point in ((x, y), (max(x, right) + 5, y), (right + LEAD - 4, place))]
        axes.plot(*zip(*points), color=color, linewidth=0.8, alpha=0.6, transform=figure.transFigure, clip_on=False)
        for row, part in enumerate(names[name]):
            at = across((right + LEAD, place + SPACING * ((len(names[name]) - 1) / 2 - row)))
            figure.text(*at, part, color=color, ha="left", va="center_baseline", parse_math=False)


def spread(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Places for labels, centred as near to the wanted ones as they can be without touching or leaving [low, high]."""
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    groups: list[
        tuple[list[int], float, float]
    ] = []  # labels that touch, the bottom of the lowest, their height together

    def inside(center: float, size: float) -> float:
        return min(max(center - size / 2, low), max(low, high - size))

    for i in order:
        members, size = [i], heights[i]
        bottom = inside(wanted[i], size)
        while groups and groups[-1][1] + groups[-1][2] > bottom:
            below, _, tall = groups.pop()
            members, size = below + members, tall + size
            bottom = inside(sum(wanted[m] for m in members) / len(members), size)
        groups.append((members, bottom, size))
    places = [0.0] * len(wanted)
    for members, bottom, _ in groups:
        for m in members:
            places[m] = bottom + heights[m] / 2
            bottom += heights[m]
    return places


def _for_a_page(svg: str, width: int, height: int) -> str:
    """matplotlib's file as an element of a page: the theme's colors, the page's font, no preamble, no names of groups."""
    svg = re.sub(
        r"<metadata>.*?</metadata>\s*|<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg[svg.index("<svg") :], flags=re.S
    )
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"|(?<=<g) id="[^"]*"', "", svg)
    svg = re.sub(r"\n\s*", " ", svg)
    svg = re.sub(r"#00[0-9a-f]{2}fe", lambda found: paint(STAND_IN[found[0]]), svg)
    size = f'width="{width}" height="{height}" role="img" stroke-linejoin="round"'
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', size, svg, count=1).strip()


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)

"""Reports: the same numbers in three formats, a page that needs no network, round ticks, labels that do not touch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.engine.report import Report, plot_svg, spread
from tenfold.engine.report_page import COLORS, standalone_svg

SVG = "{http://www.w3.org/2000/svg}"
CURVES = {"dino": [(float(i), 5.5 - i / 40) for i in range(0, 101, 10)], "k & <n>": [(0.0, 5.0), (100.0, 2.9)]}


def example() -> Report:
    report = Report("run <1>")
    report.text("first\n\nsecond")
    report.table("k-NN", [{"network": "trained & kept", "percent": 46.61234}, {"network": "pixels", "percent": 38.2}])
    report.plot("loss", {"dino": [(0, 5.5), (100, 4.9)], "empty": []}, y="nats")
    report.image("map", b"\x89PNG....")
    return report


def texts(svg: str) -> list[tuple[str, float, float]]:
    """(text, x, y) of every text of a drawing."""
    found = ElementTree.fromstring(svg).iter(f"{SVG}text")
    return [("".join(e.itertext()), float(e.get("x", "0")), float(e.get("y", "0"))) for e in found]


def test_three_files_hold_the_same_numbers(tmp_path: Path) -> None:
    page = example().write(tmp_path)
    assert "46.61" in page.read_text()
    assert "| trained & kept | 46.61 |" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["parts"][1]["rows"][0]["percent"] == 46.61234


def test_the_page_is_well_formed_escaped_and_needs_no_network() -> None:
    html = example().html()

    class Walker(HTMLParser):
        open_tags: list[str]
        links: list[str]

        def __init__(self) -> None:
            super().__init__()
            self.open_tags, self.links = [], []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.links += [value or "" for name, value in attrs if name in ("src", "href")]
            if tag not in ("meta", "img"):
                self.open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert self.open_tags.pop() == tag

    walker = Walker()
    walker.feed(html)
    assert walker.open_tags == []
    assert all(link.startswith("data:") for link in walker.links)
    assert "<1>" not in html
    assert "run &lt;1&gt;" in html


def test_every_color_of_the_page_has_a_light_and_a_dark_value() -> None:
    html = example().html()
    light, dark = html.split("prefers-color-scheme:dark")
    used = set(re.findall(r"var\(--(\w+)", html))
    assert used <= set(COLORS)
    for name in used:
        assert f"--{name}:{COLORS[name][0]}" in light
        assert f"--{name}:{COLORS[name][1]}" in dark
    drawing = plot_svg(CURVES)
    assert not re.search(r"(?<!,)#[0-9a-f]{6}", drawing), "a colour that does not follow the page"
    assert "prefers-color-scheme:dark" in standalone_svg(drawing)
    ElementTree.fromstring(standalone_svg(drawing))


def test_a_plot_places_higher_values_higher() -> None:
    svg = plot_svg({"a": [(0, 0), (1, 1)]})
    line = next(p for p in re.findall(r'd="(M[^"]*)"[^>]*stroke: var\(--line0', svg))
    (x0, y0), (x1, y1) = (tuple(map(float, p)) for p in re.findall(r"([\d.]+) ([\d.]+)", line))
    assert x1 > x0
    assert y1 < y0
    assert "nothing to plot" in plot_svg({})
    assert "nothing to plot" in plot_svg({"a": [(0, float("nan"))]})


def ticks(svg: str, anchor: str) -> list[float]:
    """The numbers below ("middle") or left of ("end") the axes."""
    found = ElementTree.fromstring(svg).iter(f"{SVG}text")
    words = ["".join(e.itertext()) for e in found if f"text-anchor: {anchor}" in e.get("style", "")]
    return [float(word.replace("−", "-").replace(",", "")) for word in words]


@pytest.mark.parametrize("low", [0.0, -3.2, 1.938, 417.31, -81234.5])
@pytest.mark.parametrize(("size", "steps"), [(0.02, 7), (0.7, 36), (47.0, 1), (12345.0, 2000), (3e6, 4999)])
def test_ticks_are_round(low: float, size: float, steps: int) -> None:
    """The distance between ticks is 1, 2, 2.5 or 5 times a power of ten, and ticks are multiples of it."""
    svg = plot_svg({"name": [(0, low), (steps, low + size)]})
    for values in (ticks(svg, "middle"), ticks(svg, "end")):
        assert len(values) >= 2
        step = float(f"{values[1] - values[0]:.3e}")
        assert f"{step:.3e}".split("e")[0] in ("1.000", "2.000", "2.500", "5.000")
        assert all(abs(v / step - round(v / step)) < 1e-3 for v in values)
    assert ticks(svg, "end")[0] <= low
    assert ticks(svg, "end")[-1] >= low + size - 1e-9 * abs(low)  # the axis goes from tick to tick


def test_whole_steps_have_whole_ticks_and_thousands_are_apart() -> None:
    words = [word for word, *_ in texts(plot_svg({"name": [(0, 0.0), (3, 2.0e6)]}))]
    assert [w for w in words if w in ("0", "1", "2", "3")][:4] == ["0", "1", "2", "3"]
    assert "1,500,000" in words
    assert "2,000,000" in words


def test_names_stand_at_the_ends_of_lines_and_do_not_touch() -> None:
    series = {f"series {i}": [(0.0, 1.0 * i), (1000.0, 5.0 + i / 100)] for i in range(14)}
    found = {word: (x, y) for word, x, y in texts(plot_svg(series)) if word.startswith("series")}
    assert set(found) == set(series)
    ys = sorted(y for _, y in found.values())
    assert all(b - a >= 12 for a, b in pairwise(ys))
    assert len({x for x, _ in found.values()}) == 1
    order = sorted(found, key=lambda name: -found[name][1])
    assert order == sorted(series, key=lambda name: series[name][-1][1])  # above as their lines are above
    rects = ElementTree.fromstring(plot_svg(series)).iter(f"{SVG}rect")
    assert all(rect.get("stroke") is None for rect in rects)  # no box of a legend


@given(wanted=st.lists(st.floats(0, 300), min_size=1, max_size=12), size=st.floats(5, 20))
def test_labels_are_spread_without_overlap_inside_and_in_order(wanted: list[float], size: float) -> None:
    places = spread(wanted, [size] * len(wanted), 0, 300)
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    for a, b in pairwise(order):
        assert places[b] - places[a] >= size - 1e-6
    assert min(places) >= size / 2 - 1e-6
    assert max(places) <= 300 - size / 2 + 1e-6
    if len(wanted) == 1 and size <= wanted[0] <= 300 - size:
        assert places == pytest.approx(wanted)


def test_a_drawing_is_xml_with_its_words_as_text() -> None:
    svg = plot_svg({**CURVES, "$x_1$ ünïcode 漢": [(0, 1), (5, 2)]}, x="step <n>", y="a & b")
    words = [word for word, *_ in texts(svg)]
    assert {"dino", "k & <n>", "$x_1$ ünïcode 漢", "step <n>", "a & b"} <= set(words)
    assert len(svg) < 20_000
    assert ElementTree.fromstring(plot_svg({"one": [(3, 3)]})).find(f".//{SVG}use") is not None  # a dot


def test_the_same_numbers_give_the_same_bytes() -> None:
    code = "from tests.engine.test_report import CURVES; from tenfold.engine.report import plot_svg; print(plot_svg(CURVES))"
    code = code.replace("from tests.engine.test_report import CURVES", f"CURVES = {CURVES!r}")
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert plot_svg(CURVES) == plot_svg(CURVES) == other.strip()
    assert plot_svg(CURVES) != plot_svg({"dino": CURVES["dino"]})


def test_a_users_own_matplotlib_settings_change_nothing_and_stay() -> None:
    import matplotlib

    before = plot_svg(CURVES)
    with matplotlib.rc_context({"lines.linewidth": 9, "text.usetex": True, "svg.fonttype": "path"}):
        assert plot_svg(CURVES) == before
        assert matplotlib.rcParams["lines.linewidth"] == 9


def test_matplotlib_is_imported_when_something_is_plotted_and_not_before() -> None:
    code = """
import sys
import tenfold
from tenfold.cli import main
main(["--help"])
early = {"torch", "matplotlib"} & set(sys.modules)
from tenfold.engine.report import Report
import tenfold.engine.trainer, tenfold.tour.tour, tenfold.evaluation
report = Report("a")
report.table("t", [{"a": 1}])
report.html()
late = "matplotlib" in sys.modules
report.plot("p", {"a": [(0, 1), (1, 2)]})
report.html()
assert not early, early
assert not late
assert "matplotlib" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_only_one_file_imports_matplotlib_and_only_one_holds_css() -> None:
    import tenfold

    root = Path(tenfold.__file__).parent
    sources = {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*.py")}
    assert [n for n, text in sources.items() if re.search(r"^\s*(import|from) matplotlib", text, re.M)] == [
        "engine/report.py"
    ]
    assert [n for n, text in sources.items() if "font-variant-numeric" in text or "<!doctype" in text] == [
        "engine/report_page.py"
    ]

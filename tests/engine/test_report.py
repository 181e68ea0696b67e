"""A report says the same in three formats and its page stands alone."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

from tenfold.engine.report import Report, plot_svg


def example() -> Report:
    report = Report("run <1>")
    report.text("first\n\nsecond")
    report.table("k-NN", [{"network": "trained & kept", "percent": 46.61234}, {"network": "pixels", "percent": 38.2}])
    report.plot("loss", {"dino": [(0, 5.5), (100, 4.9)], "empty": []}, y="nats")
    report.image("map", b"\x89PNG....")
    return report


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


def test_a_plot_places_higher_values_higher() -> None:
    svg = plot_svg({"a": [(0, 0), (1, 1)]})
    points = svg.split('points="')[1].split('"')[0].split()
    (x0, y0), (x1, y1) = (tuple(map(float, p.split(","))) for p in points)
    assert x1 > x0
    assert y1 < y0
    assert "nothing to plot" in plot_svg({})
    assert "<circle" in plot_svg({"one": [(3, 3)]})

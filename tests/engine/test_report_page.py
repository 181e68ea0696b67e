"""Tables and pages of a report: numbers to the right with like decimals, what is written is escaped, nothing is fetched."""

from __future__ import annotations

from html.parser import HTMLParser
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.engine.report_page import COLORS, is_numeric, page_html, paint, standalone_svg, table_html, table_markdown


class Cells(HTMLParser):
    """The texts of a table, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.rows[-1][-1] += data


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["C"]), min_size=1), min_size=1, max_size=5))
def test_any_text_comes_out_of_a_table_as_it_went_in(cells: list[str]) -> None:
    found = Cells()
    found.feed(table_html([{"<b>&": cell} for cell in cells]))
    assert found.rows == [["<b>&"], *([cell] for cell in cells)]


def test_a_title_is_escaped_and_a_body_is_not_expanded() -> None:
    html = page_html("a < b $body", "<p>$title $style</p>")
    assert "<title>a &lt; b $body</title>" in html
    assert "<p>$title $style</p>" in html


def test_a_drawing_of_its_own_brings_the_colours_that_it_names() -> None:
    svg = standalone_svg(f'<svg xmlns="http://www.w3.org/2000/svg"><path fill="{paint("good")}"/></svg>')
    ElementTree.fromstring(svg)
    light, dark = svg.split("prefers-color-scheme:dark")
    assert f"--good:{COLORS['good'][0]}" in light
    assert f"--good:{COLORS['good'][1]}" in dark


def test_text_is_to_the_left_and_numbers_are_to_the_right() -> None:
    rows = [
        {"network": "trained", "k-NN": 46.61234, "saved": "12 %", "same": "3 of 3", "n": 1200, "s": ""},
        {"network": "pixels", "k-NN": 38.2, "saved": "-3.1 %", "same": "2 of 3", "n": 5, "s": "0.25"},
    ]
    assert [c for c in rows[0] if is_numeric(rows, c)] == ["k-NN", "saved", "n", "s"]
    assert table_markdown(rows).splitlines()[1] == "|---|---:|---:|---|---:|---:|"
    html = table_html(rows)
    assert html.count('class="number"') == 4 * 3
    assert "<td>trained</td>" in html
    assert not is_numeric([{"a": True}], "a")
    assert not is_numeric([{"a": ""}], "a")
    assert not is_numeric([{"a": "1e"}, {"a": 2}], "a")


def test_a_column_of_like_numbers_has_the_same_decimals_and_others_keep_four_digits() -> None:
    assert "46.61 |" in table_markdown([{"x": 46.61234}, {"x": 38.2}])
    assert "38.20 |" in table_markdown([{"x": 46.61234}, {"x": 38.2}])
    wide = table_markdown([{"x": 1234.5}, {"x": 0.00123456}, {"x": float("nan")}, {"x": 0.0}])
    assert [line.strip("| ") for line in wide.splitlines()[2:]] == ["1234", "0.001235", "nan", "0"]


def test_a_cell_with_lines_and_bars_stays_one_row_of_markdown() -> None:
    assert table_markdown([{"answer": "a\nb | c"}]).splitlines()[2] == "| a b \\| c |"

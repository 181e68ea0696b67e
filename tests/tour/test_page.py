"""The tour's page has ten sections, never claims what was not run, and says where the time went."""

from __future__ import annotations

import re

from tenfold.engine.report import Report
from tenfold.systems import SYSTEMS
from tenfold.tour.page import tour_page


def test_ten_sections_in_order_and_those_not_built_say_so() -> None:
    panel = Report("x")
    panel.table("k-NN", [{"network": "trained", "percent": 12.5}])
    page = tour_page({1: panel}, {"1. training": 20.0, "rest <a>": 10.04})
    sections = re.findall(r'<section data-system="(\d+)" data-state="(\w+)">(.*?)</section>', page, re.S)
    assert [int(number) for number, _, _ in sections] == list(range(1, 11))
    for system, (_, state, body) in zip(SYSTEMS, sections):
        assert state == system.state
        assert ("Not built yet" in body) == (system.state == "planned")
    assert "12.5" in sections[0][2]
    assert "Not part of this tour" in sections[5][2]
    assert "0.5 minutes" in page
    assert '<td>rest &lt;a&gt;</td><td class="number">10.0</td>' in page

"""The tour's HTML page: ten sections in the order of the table of systems, one self-contained file.

A section of a system that exists shows its pictures, numbers and the next command to type; one that does not says so.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from html import escape

from tenfold.engine.report import Report, part_html
from tenfold.engine.report_page import page_html, table_html
from tenfold.systems import SYSTEMS, System


def tour_page(panels: Mapping[int, Report], seconds: Mapping[str, float]) -> str:
    """HTML of the whole page. `panels` maps a system's number to what was measured for it, `seconds` each part of the tour to
    the time that it took."""
    built = sum(system.state != "planned" for system in SYSTEMS)
    intro = (
        f"<h1>tenfold, on this machine</h1><p>{built} of the ten systems can be tried today; each section says "
        f"what works and what does not. Everything below was computed on this machine, in "
        f"{sum(seconds.values()) / 60:.1f} minutes.</p>"
    )
    sections = "\n".join(section(system, panels.get(system.number)) for system in SYSTEMS)
    rows = [{"part": part, "seconds": f"{spent:.1f}"} for part, spent in seconds.items()]
    return page_html("tenfold tour", f"{intro}{sections}<h2>Where the time went</h2>{table_html(rows)}")


def section(system: System, panel: Report | None) -> str:
    head = (
        f"<h2>{system.number}. {escape(system.name)} <small>({system.state})</small></h2><p>{escape(system.note)}.</p>"
    )
    body = "\n".join(part_html(part) for part in panel.parts) if panel else ""
    if system.state == "planned":
        body = "<p><b>Not built yet.</b> Nothing is shown because nothing was run.</p>"
    elif panel is None:
        body = "<p>Not part of this tour's run.</p>"
    commands = "".join(f"<pre>$ {escape(command)}</pre>" for command in system.commands)
    return f'<section data-system="{system.number}" data-state="{system.state}">{head}{body}{commands}</section>'


def say(text: str) -> None:
    """One line of progress to standard error."""
    print("tour:", text, file=sys.stderr, flush=True)

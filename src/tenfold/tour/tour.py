"""`tenfold tour`: trains, embeds and draws on real input, and writes one HTML page with ten sections.

Only what exists is run; a section of a system that does not exist says so (tour/page.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from tenfold.data.atomic import write_atomic
from tenfold.data.samples import fetch
from tenfold.engine.report import Report
from tenfold.tour.language import memory_panel, sparsity_panel
from tenfold.tour.page import say, tour_page
from tenfold.tour.speculation import speculation_panel
from tenfold.tour.vision import features_panel, pretrain_panel


def run(out: Path, minutes: float) -> Path:
    """Runs the tour into `out` (its earlier run is replaced) and returns the page's path. `minutes` of training are shared
    between the panels."""
    start = monotonic()
    out.mkdir(parents=True, exist_ok=True)
    say("fetching the sample photographs")
    folder = fetch("scikit-image")
    panels: dict[int, Report] = {}
    seconds = {"fetching the photographs": monotonic() - start}

    def panel(number: int, name: str, build: Callable[[], Report]) -> None:
        begun = monotonic()
        panels[number] = build()
        seconds[f"{number}. {name}"] = monotonic() - begun
        say(f"{name}: {seconds[f'{number}. {name}']:.0f} seconds")

    panel(1, "self-supervised training", lambda: pretrain_panel(out, folder, 0.6 * minutes))
    panel(6, "features", lambda: features_panel(out, folder))
    panel(2, "speculative decoding", speculation_panel)
    panel(3, "activation sparsity", lambda: sparsity_panel(out, 0.15 * minutes))
    panel(4, "memory layers", lambda: memory_panel(out, 0.25 * minutes))
    write_atomic(out / "index.html", tour_page(panels, seconds).encode())
    found = {"panels": {n: json.loads(panel.json()) for n, panel in panels.items()}, "seconds": seconds}
    write_atomic(out / "tour.json", json.dumps(found, indent=2).encode())
    return out / "index.html"

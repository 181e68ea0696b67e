"""`tenfold tour`: trains, embeds and draws on real input, and writes one page with ten sections.

Only what exists is run; a section of a system that does not exist says so (tour/page.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from time import monotonic

from tenfold.data.atomic import write_atomic
from tenfold.data.samples import fetch
from tenfold.tour.language import memory_panel, sparsity_panel, speculation_panel
from tenfold.tour.page import say, tour_page
from tenfold.tour.vision import features_panel, pretrain_panel


def run(out: Path, minutes: float) -> Path:
    """Runs the tour into `out` (its earlier run is replaced) and returns the page's path."""
    start = monotonic()
    out.mkdir(parents=True, exist_ok=True)
    say("fetching the sample photographs")
    folder = fetch("scikit-image")
    panels = {
        1: pretrain_panel(out, minutes),
        6: features_panel(out, folder),
        2: speculation_panel(),
        3: sparsity_panel(out, minutes / 4),
        4: memory_panel(out, minutes / 2),
    }
    spent = (monotonic() - start) / 60
    write_atomic(out / "index.html", tour_page(panels, spent).encode())
    write_atomic(
        out / "tour.json",
        json.dumps({str(n): json.loads(panel.json()) for n, panel in panels.items()}, indent=2).encode(),
    )
    return out / "index.html"

"""The architecture page agrees with the code: its layers are those that import-linter holds, and every file it names exists."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES.remove(ROOT / "docs/LOG.md")  # history keeps the names of its day


@pytest.mark.parametrize("contract", ["layers", "vision", "language"])
def test_the_layers_of_the_page_are_those_of_import_linter(contract: str) -> None:
    rules = configparser.ConfigParser()
    rules.read(ROOT / ".importlinter")
    lines = rules[f"importlinter:contract:{contract}"]["layers"].replace("tenfold.", "").split("\n")
    page = (ROOT / "docs/architecture.md").read_text()
    block = re.search(rf"<!-- {contract} -->\n```\n(.*?)```\n<!-- end -->", page, re.S)
    assert block is not None
    assert [re.split(r"\s{2,}", line)[0] for line in block[1].splitlines()] == list(filter(None, lines))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    """`vision/recipes.py` is below src/tenfold, `tests/...` and `docs/...` below the checkout, a link beside the page."""
    text = re.sub(r"<!-- files -->.*?<!-- end -->", "", page.read_text(), flags=re.S)  # the tree quotes source files
    codes = re.findall(r"(?<![\w./-])((?:[\w.-]+/)+[\w-]+\.(?:py|cpp|h|md|svg|safetensors))(?![\w/])", text)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assets = {"runs", "out", "tour"}  # folders of the user
    missing = [
        name
        for name in codes
        if name.split("/")[0] not in assets
        and not any((place / name).exists() for place in (ROOT / "src/tenfold", ROOT, page.parent))
    ]
    missing += [link for link in links if not (page.parent / link).exists()]
    assert not missing

"""The README tells the truth: its table and tree follow from the code, and its commands exist."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pages import commands
from tenfold.cli import VERBS
from tenfold.registry import recipes

ROOT = Path(__file__).resolve().parents[1]


def test_table_and_tree_are_those_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("tree", ROOT / "docs/tree.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / "README.md").read_text()
    assert module.render(text) == text, "run: python docs/tree.py"
    assert "TABLE" not in text


def test_every_command_in_the_readme_and_the_docs_exists() -> None:
    found = 0
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for words in commands(page.read_text()):
            found += 1
            assert words[0] in VERBS or " ".join(words[:2]) in VERBS, (page.name, words)
            if words[0] == "train" and words[1:] and not words[1].startswith("-"):
                assert words[1] in recipes, (page.name, words)
    assert found >= 10

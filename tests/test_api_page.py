"""The page of public names: every example in docs/api.md runs as it is printed, package by package, on real photographs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from tenfold.data.sources import open_source

PAGE = Path(__file__).resolve().parents[1] / "docs/api.md"
PACKAGES = ("tenfold", "tenfold.vision", "tenfold.language", "tenfold.nn", "tenfold.engine", "tenfold.shards")


def blocks(package: str) -> list[str]:
    """The python blocks of the package's section, with as many empty lines before them as in the page, so that a traceback
    names the page's line."""
    text = PAGE.read_text()
    heading = re.search(rf"^## {re.escape(package)}$", text, re.M)
    assert heading is not None, f"docs/api.md has no section {package}"
    following = re.search(r"^## ", text[heading.end() :], re.M)
    end = heading.end() + following.start() if following else len(text)
    found = [m for m in re.finditer(r"^```python\n(.*?)^```", text, re.S | re.M) if heading.end() <= m.start() < end]
    return ["\n" * text[: m.start(1)].count("\n") + m[1] for m in found]


@pytest.fixture
def scratch(test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the page names: 40 photographs of 10 classes (the last character of the name is the class), and one
    scene twice. Modules that the examples write are importable here and in worker processes."""
    source = open_source(test_data / "vision/imagenette160_val.parquet")
    (tmp_path / "photos").mkdir()
    for number in range(40):
        sample = source[number % 10 * len(source) // 10 + 20 + number]
        photo = tmp_path / f"photos/{number:02}-{sample.label}.png"
        Image.fromarray(sample.image).resize((160, 160)).save(photo)
    scene = np.asarray(Image.fromarray(source[0].image).resize((120, 96)))
    Image.fromarray(scene[:, :96]).save(tmp_path / "left.png")
    Image.fromarray(scene[:, 24:]).save(tmp_path / "right.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "package", [pytest.param(p, marks=pytest.mark.samples if p == "tenfold.language" else ()) for p in PACKAGES]
)
def test_examples_of_the_page_run_as_they_are_printed(
    package: str, scratch: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package == "tenfold.language":
        request.getfixturevalue("smollm2")
    examples = blocks(package)
    assert examples, f"docs/api.md has no example of {package}"
    page = ModuleType("api_page")  # known by name, as dataclasses want of their module
    monkeypatch.setitem(sys.modules, page.__name__, page)
    for example in examples:
        module = re.match(r"\s*# (\w+)\.py\n", example)
        if module is not None:
            (scratch / f"{module[1]}.py").write_text(example.lstrip())
            sys.modules.pop(module[1], None)
        else:
            exec(compile(example, str(PAGE), "exec"), vars(page))


def test_the_page_has_a_section_for_every_public_package_and_no_other() -> None:
    assert tuple(re.findall(r"^## (tenfold\S*)$", PAGE.read_text(), re.M)) == PACKAGES

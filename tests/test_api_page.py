"""The page of public names: every example in docs/api.md runs as it is printed, package by package, on real photographs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tenfold.data.sources import open_source

PAGE = Path(__file__).resolve().parents[1] / "docs/api.md"
PACKAGES = ("tenfold", "tenfold.vision", "tenfold.language", "tenfold.nn", "tenfold.engine", "tenfold.shards")


def write_examples(package: str, folder: Path) -> Path:
    """The python blocks of the package's section as one program, at the lines that they have in the page, so that a traceback
    names the page's line. A block that opens with `# name.py` becomes that module beside it."""
    text = PAGE.read_text()
    heading = re.search(rf"^## {re.escape(package)}$", text, re.M)
    assert heading is not None, f"docs/api.md has no section {package}"
    following = re.search(r"^## ", text[heading.end() :], re.M)
    end = heading.end() + following.start() if following else len(text)
    lines: list[str] = []
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.S | re.M):
        if not heading.end() <= block.start() < end:
            continue
        module = re.match(r"# (\w+\.py)\n", block[1])
        if module is not None:
            (folder / module[1]).write_text(block[1])
        else:
            lines += [""] * (text[: block.start(1)].count("\n") - len(lines)) + block[1].splitlines()
    assert lines, f"docs/api.md has no example of {package}"
    program = folder / "api_page.py"
    program.write_text("\n".join(lines) + "\n")
    return program


@pytest.fixture
def folder(test_data: Path, tmp_path: Path) -> Path:
    """What the page names: 40 photographs of 10 classes (the last character of the name is the class), one scene twice."""
    source = open_source(test_data / "vision/imagenette160_val.parquet")
    (tmp_path / "photos").mkdir()
    for number in range(40):
        sample = source[number % 10 * len(source) // 10 + 20 + number]
        photo = tmp_path / f"photos/{number:02}-{sample.label}.png"
        Image.fromarray(sample.image).resize((160, 160)).save(photo)
    scene = np.asarray(Image.fromarray(source[0].image).resize((120, 96)))
    Image.fromarray(scene[:, :96]).save(tmp_path / "left.png")
    Image.fromarray(scene[:, 24:]).save(tmp_path / "right.png")
    return tmp_path


@pytest.mark.parametrize(
    "package", [pytest.param(p, marks=pytest.mark.samples if p == "tenfold.language" else ()) for p in PACKAGES]
)
def test_examples_of_the_page_run_as_they_are_printed(
    package: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    if package == "tenfold.language":
        request.getfixturevalue("smollm2")
    program = write_examples(package, folder)
    session = (
        f"exec(compile(open({program.name!r}).read(), 'docs/api.md', 'exec'))"  # workers import scripts, but no session
    )
    done = subprocess.run(
        [sys.executable, "-c", session],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout, "the examples print nothing"


def test_the_page_has_a_section_for_every_public_package_and_no_other() -> None:
    assert tuple(re.findall(r"^## (tenfold\S*)$", PAGE.read_text(), re.M)) == PACKAGES

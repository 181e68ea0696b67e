"""The public names: importable from the wings, listed once, explained in docs/api.md; old paths warn for one version."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("tenfold", "tenfold.vision", "tenfold.language", "tenfold.nn", "tenfold.engine", "tenfold.shards")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there_and_is_what_type_checkers_are_told(package: str) -> None:
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__ or "").read_text())
    told = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.If)
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    offered = set(module.__all__)
    assert told <= offered
    assert offered <= told | {"recipes"}
    for name in offered:
        assert getattr(module, name) is not None
    assert offered - {"recipes"} <= set(dir(module))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_line_and_an_example_in_the_page(package: str) -> None:
    page = (ROOT / "docs/api.md").read_text()
    examples = "\n".join(re.findall(r"```python\n(.*?)```", page, re.S))
    for name in importlib.import_module(package).__all__:
        assert re.search(rf"^\| `{name}` \| .+ \|", page, re.M), f"{package}.{name} has no line in docs/api.md"
        assert re.search(rf"\b{name}\b", examples), f"{package}.{name} has no example in docs/api.md"


def test_a_misspelt_name_is_told_the_nearest() -> None:
    module = importlib.import_module("tenfold.vision")
    with pytest.raises(AttributeError, match="did you mean 'load_image'"):
        _ = module.load_imag


def test_the_wings_load_no_torch_until_a_name_is_used() -> None:
    code = f"import sys\nfor p in {PACKAGES!r}: __import__(p)\nsys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("old", "name", "new"),
    [
        ("tenfold.language.engine", "LLM", "tenfold.language"),
        ("tenfold.language.language_model", "set_mode", "tenfold.language"),
        ("tenfold.vision.images", "load_image", "tenfold.vision"),
    ],
)
def test_paths_that_the_last_version_s_pages_showed_still_work_and_warn(old: str, name: str, new: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"Import from {new} instead"):
        module = importlib.import_module(old)
    assert getattr(module, name) is getattr(importlib.import_module(new), name)


def test_sampling_params_keep_the_path_that_pages_showed() -> None:
    from tenfold.language import SamplingParams
    from tenfold.language.sampling import SamplingParams as FormerPath

    assert FormerPath is SamplingParams

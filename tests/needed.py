"""What a test cannot do without: an optional package, an input. On a laptop its absence skips the test, in CI it fails."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest


def absent(what: str) -> None:
    """Skips on a laptop; fails in CI, where a missing input is a broken set-up."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing; in CI that is a failure")
    pytest.skip(f"{what} is missing")


def package(name: str) -> Any:
    """An optional package that a test cannot do without."""
    try:
        return importlib.import_module(name)
    except ImportError:
        absent(f"the package {name}")

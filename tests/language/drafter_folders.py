"""Drafters as folders of other engines' layouts, for tests of their weights and of their config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

import tenfold
from language.drafting_models import saved
from tenfold.export.weights import convert
from tenfold.language.drafting.drafter import EagleDrafter


def loaded(path: Path, **hints: Any) -> EagleDrafter:
    drafter = tenfold.load(path, **hints)
    assert isinstance(drafter, EagleDrafter)
    return drafter


def folder(path: Path, drafter: EagleDrafter, to: str) -> Path:
    return convert(saved(drafter, path / "own.safetensors"), path / to, to=to)


def edited(path: Path, **changes: Any) -> Path:
    """The folder's config.json with entries set, or (None) taken out."""
    values = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return path


def same(a: EagleDrafter, b: EagleDrafter) -> None:
    assert a.config == b.config
    mine, its = a.state_dict(), b.state_dict()
    assert mine.keys() == its.keys()
    for name in mine:
        assert mine[name].dtype == its[name].dtype
        assert torch.equal(mine[name], its[name]), name

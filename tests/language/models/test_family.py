"""`tenfold.load` and `convert` know every layout of a Llama by one table."""

from __future__ import annotations

from pathlib import Path

import pytest

from language.engine_models import tiny_llama
from tenfold.data.tensors import save_own
from tenfold.errors import UsageError
from tenfold.export.weights import convert, families
from tenfold.language.models.family import FAMILY


def test_the_registered_family_has_every_layout() -> None:
    assert families.load("llama") is FAMILY
    assert [layout.name for layout in FAMILY.layouts] == ["hf", "gguf", "memory"]


def test_a_layout_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    model = tiny_llama()
    save_own(tmp_path / "m.safetensors", model.state_dict(), "llama", model.config)
    with pytest.raises(UsageError, match=r"hf"):
        convert(tmp_path / "m.safetensors", tmp_path / "out", to="timm")
    with pytest.raises(UsageError, match="GGUF is read, not written"):
        convert(tmp_path / "m.safetensors", tmp_path / "out", to="gguf")

"""The run folder: the configuration that is written before training, and the final weights after it.

    write_config(out, name, recipe)        config.json; `tenfold train --resume` reads it
    write_weights(out, delivered)          final.safetensors, and final-NAME.safetensors of further models

The training report beside them is run_report.py's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.config import to_dict
from tenfold.data.atomic import write_atomic
from tenfold.data.tensors import save_own
from tenfold.engine.provenance import commit, version
from tenfold.engine.recipe import Recipe


def write_config(out: Path, name: str, recipe: Recipe) -> None:
    """The resolved configuration of recipe `name`, and what wrote it."""
    saved = {"recipe": name, "version": version(), "commit": commit(), "torch": torch.__version__}
    write_atomic(out / "config.json", json.dumps({**saved, "config": to_dict(recipe)}, indent=2).encode())


def write_weights(out: Path, delivered: Mapping[str, tuple[dict[str, Tensor], tuple[str, Any]]]) -> None:
    """{file name without its ending: (tensors, card)}."""
    for name, (tensors, card) in delivered.items():
        save_own(out / f"{name}.safetensors", tensors, *card)

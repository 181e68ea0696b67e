"""tenfold's own weights file: safetensors whose metadata says what the tensors are.

write_tensors(path, tensors, {"kind": "vit", "config": {...}})
read_card(path)                                        # {"kind": "vit", "config": {...}}, or {} for a foreign file
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tenfold.data.atomic import aside

KEY = "tenfold"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Writes aside and renames. Tensors that share memory are written twice, as the format demands."""
    with aside(path) as temporary:
        save_file(
            {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()},
            temporary,
            {KEY: json.dumps(card), "format": "pt"},
        )


def read_card(path: Path) -> dict[str, Any]:
    """What the file says of itself."""
    with safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get(KEY, "{}"))

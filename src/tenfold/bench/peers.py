"""Where peers and oracles come from: folders of their own beside `.venv`, never the product's environment.

    make oracles      .oracles: timm, torchvision, ... for the tests marked `oracle` and for `tenfold bench augment`
    make peers        .peers: what the benchmarks run beside tenfold

Both are filled with `pip install --no-deps --target`, because several of these packages would replace torch, and are put
on the path by `PYTHONPATH`.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

# What torchvision's Python half declares shapes for at import. Its compiled half is built for another torch.
_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[Any] = []  # an operator lives as long as its library object


def torchvision(module: str = "torchvision") -> Any | None:
    """The named module of torchvision, or None when it is not installed. Its transforms are Python over torch and Pillow
    and run with any torch; its compiled operators (boxes, regions) do not, and are declared empty."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    import torch

    if not _declared and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _OPERATORS:
            library.define(schema)
        _declared.append(library)
    return importlib.import_module(module)

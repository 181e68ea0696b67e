"""Meta tensors: a module with its shapes and without numbers; nothing is allocated and nothing is drawn.

    with outline():
        model = Llama(config)                   parameters on the meta device

`torch.device("meta")` alone still calls the initialisers, and the first of them makes torch import its compiler: 900 modules
and 150 MB for numbers that do not exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

DRAWS = frozenset({"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_"})


class _Undrawn(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if getattr(func, "__name__", "") in DRAWS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


@contextmanager
def outline() -> Iterator[None]:
    """Modules built inside are on the meta device, and their initialisers do nothing."""
    with torch.device("meta"), _Undrawn():
        yield

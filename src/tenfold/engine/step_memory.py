"""Memory and precision of a step: bf16 autocast (mixed precision), and activation checkpointing.

    autocast_type("auto", device)          the type of a step's matrix products, or None for fp32
    recompute(task.layers(model))          before the model is wrapped; names of parameters stay as they are

Neither changes what is computed beyond rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tenfold.kernels.machine import bf16_is_fast


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """bf16 where the configuration asks for it, or, for `auto`, where the device has units for it."""
    wanted = precision == "bf16" or (precision == "auto" and bf16_is_fast(device))
    return torch.bfloat16 if wanted else None


def recompute(layers: Iterable[nn.Module]) -> None:
    """From now on each of `layers` keeps its inputs only: its forward is run again in the backward."""
    for layer in layers:
        layer.forward = _recomputed(layer.forward)


def _recomputed(forward: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run

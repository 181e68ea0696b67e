"""Activation checkpointing: a layer's forward pass is run again in the backward pass instead of being kept in memory.

recompute(task.layers(model))          before the model is wrapped; names of parameters stay as they are
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(layers: Iterable[nn.Module]) -> None:
    """From now on each of `layers` keeps its inputs alone."""
    for layer in layers:
        layer.forward = _recomputed(layer.forward)


def _recomputed(forward: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run

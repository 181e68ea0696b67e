"""Which slots of a memory table a model reads: how many at all, how evenly, which most.

    with MemoryUsage(model) as usage:
        model(tokens)
    usage.coverage, usage.divergence, usage.most_read(10)

Counts stay on the device and are added up there, so that a training step waits for nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tenfold.errors import UsageError
from tenfold.nn.memory import MemoryLayer


class MemoryUsage:
    """Watches every memory layer of `model` inside a `with` block. `weight` (layers, K): the sum of the weights that each
    slot was read with. Raises UsageError for a model without memory layers."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = {name: module for name, module in model.named_modules() if isinstance(module, MemoryLayer)}
        if not self.layers:
            raise UsageError("the model has no memory layers to watch.")
        first = next(iter(self.layers.values()))
        self.weight = torch.zeros(len(self.layers), first.table.slots, device=first.keys.device)
        self._handles: list[Any] = []

    def __enter__(self) -> MemoryUsage:
        for row, layer in enumerate(self.layers.values()):
            self._handles.append(layer.register_forward_pre_hook(self._counter(row)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _counter(self, row: int) -> Any:
        @torch.no_grad()
        def count(layer: MemoryLayer, inputs: tuple[Tensor, ...]) -> None:
            index, weight = layer.lookup(inputs[0].reshape(-1, layer.dim))
            self.weight[row].index_add_(0, index.flatten(), weight.flatten().to(self.weight.dtype))

        return count

    @property
    def coverage(self) -> float:
        """Share of the slots that any layer has read."""
        return float((self.weight.sum(0) > 0).float().mean())

    @property
    def layer_coverage(self) -> dict[str, float]:
        """The same of each layer alone."""
        return {name: float((row > 0).float().mean()) for name, row in zip(self.layers, self.weight)}

    @property
    def divergence(self) -> float:
        """KL divergence in nats of the reads from an even use of all slots: 0 is even, log K is one slot alone."""
        total = self.weight.sum(0).double()
        share = total / total.sum().clamp(min=1e-300)
        return float(torch.special.xlogy(share, share).sum() + math.log(len(total)))

    def most_read(self, count: int) -> tuple[Int[Tensor, "count"], Float[Tensor, "count"]]:
        """The slots with the largest share of all reads, and their shares."""
        total = self.weight.sum(0)
        top = (total / total.sum().clamp(min=1e-30)).topk(min(count, len(total)))
        return top.indices, top.values

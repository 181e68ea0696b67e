"""Packed linear layers for CPU inference: the weight is packed once, the product runs without allocating.

    packed = PackedLinear(layer.weight, layer.bias, gain=layer_scale)
    packed.into(x, out)              out = x W^T + b
    packed.add_to(residual, x)       residual += gain * (x W^T + b), in the matrix product itself

On a CPU a fresh output of megabytes costs as much as its arithmetic, because the system hands out zeroed pages at every
call; reused memory (`Workspace`) and sums inside the product are what makes this faster than nn.Linear, not the product,
which is at its limit either way.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Workspace:
    """Named scratch memory that grows to the largest request and is reused. One call at a time may use it."""

    def __init__(self) -> None:
        self._flat: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """An uninitialised fp32 tensor; the next `take` of the same name overwrites it."""
        size = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or flat.numel() < size:
            with torch.inference_mode(False):  # memory made inside inference mode could not be written outside it
                flat = self._flat[name] = torch.empty(size)
        return flat[:size].view(shape)


class PackedLinear(nn.Module):
    """The weight as (in, out) in fp32, contiguous, so that no call transposes or converts; `gain` scales the outputs."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None, gain: Float[Tensor, " o"] | None = None
    ) -> None:
        super().__init__()
        wide = weight.detach().float()
        offset = torch.zeros(len(wide)) if bias is None else bias.detach().float()
        if gain is not None:
            wide, offset = wide * gain.detach().float()[:, None], offset * gain.detach().float()
        self.register_buffer("weight", wide.t().contiguous(), persistent=False)
        self.register_buffer("bias", offset.clone(), persistent=False)

    def into(self, x: Float[Tensor, "m i"], out: Float[Tensor, "m o"]) -> Float[Tensor, "m o"]:
        """Overwrites `out`."""
        return torch.addmm(self.bias, x, self.weight, out=out)

    def add_to(self, residual: Float[Tensor, "m o"], x: Float[Tensor, "m i"]) -> None:
        """Adds to `residual` in place."""
        residual.add_(self.bias).addmm_(x, self.weight)

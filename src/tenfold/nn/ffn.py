"""Feed-forward networks: GELU MLP, SwiGLU and Squared-ReLU. A block takes any module from width d to width d.

SwiGLU: arXiv 2002.05202. Squared-ReLU: arXiv 2109.08668; most of its hidden values are exactly zero, which 2:4 sparsity
(arXiv 2503.16672) uses in training and `gather` in decoding.

    T tokens   d width   h hidden width
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tenfold.errors import UsageError, unknown_name
from tenfold.nn.bag import bag
from tenfold.nn.sparse24 import Sparsity24, measure, sparse24_ffn

Mode = Literal["dense", "sparse24", "gather"]


class GeluFFN(nn.Module):
    """down(gelu(up(x))), exact GELU."""

    def __init__(self, dim: int, hidden: int, bias: bool = True) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return self.down(F.gelu(self.up(x)))


class SwiGLUFFN(nn.Module):
    """down(silu(gate(x)) * up(x)). gate and up are one matrix, gate first."""

    def __init__(self, dim: int, hidden: int, bias: bool = True) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class SquaredReluFFN(nn.Module):
    """down(relu(up(x)) ** 2), in one of three modes that share the same two weights.

    dense      plain products
    sparse24   2 of every 4 hidden values stay (nn/sparse24.py): training as `sparsity` says
    gather     exact inference that reads only the rows of `down` whose hidden value is not zero. One token reads them as
               a weighted bag; several do while they are expected to need fewer than half of the rows together (1 - s^T
               of them for T tokens and a share s of zeros, which earlier single tokens have shown); else, and while a
               gradient is wanted, plain products

    In `gather` the memory of `down.weight` holds one row per hidden unit; its shape, name and file stay as they are.
    `meter`, where a SparsityController has set one, sums the share of zeros, the share of activation mass that 2:4 loses,
    and the number of calls.
    """

    def __init__(self, dim: int, hidden: int, bias: bool = False, *, sparsity: Sparsity24 | None = None) -> None:
        super().__init__()
        self.sparsity = None if sparsity is None or sparsity.pattern == "none" else sparsity
        if bias and self.sparsity:
            raise UsageError("2:4 sparsity is for networks without biases: give bias=False, or sparsity=None.")
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)
        self.meter: Tensor | None = None
        self.zero_share: float | None = None  # of the hidden values of single tokens, as they came by
        self._mode: Mode = "dense"

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        if mode not in get_args(Mode):
            raise unknown_name("mode of a squared-ReLU network", mode, get_args(Mode))
        if mode == "sparse24" and self.sparsity is None:
            raise UsageError("this network has no 2:4 configuration: make it with sparsity=Sparsity24().")
        if mode == "gather":
            weight = self.down.weight.data
            self.down.weight.data = weight.t().contiguous().t()
        self._mode = mode  # pyright: ignore (one of Mode, see above)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        if self._mode == "sparse24":
            return self._sparse24(x)
        y1 = self.up(x)
        if self.meter is not None:
            measure(y1.detach(), self.meter)
        hidden = F.relu(y1).square()
        if self._mode == "gather" and not torch.is_grad_enabled():
            bags = self._bags(hidden.flatten(0, -2))
            if bags is not None:
                return (bags if self.down.bias is None else bags + self.down.bias).view_as(x)
        return self.down(hidden)

    def _sparse24(self, x: Tensor) -> Tensor:
        assert self.sparsity is not None
        rows, up, down = x.flatten(0, -2), self.up.weight, self.down.weight
        if torch.is_autocast_enabled(x.device.type):
            kind = torch.get_autocast_dtype(x.device.type)
            rows, up, down = rows.to(kind), up.to(kind), down.to(kind)
        return sparse24_ffn(rows, up, down, self.sparsity, self.meter).view_as(x)

    def _bags(self, hidden: Float[Tensor, "t h"]) -> Float[Tensor, "t d"] | None:
        """The product with `down` as bags of rows, or None where plain products are less work."""
        tokens, width = hidden.shape
        if tokens == 1:
            active = hidden[0].nonzero()[:, 0]
            share = 1 - len(active) / width
            # Earlier tokens alone decide for later ones: which kernel runs must not depend on what is still to come.
            self.zero_share = share if self.zero_share is None else 0.9 * self.zero_share + 0.1 * share
            if share <= 0.5:
                return None
            return bag(self.down.weight.t(), active[None], hidden[0, active][None])
        if self.zero_share is None or 1 - self.zero_share**tokens >= 0.5:
            return None
        # Token by token, so that the order of its sums, and with it every bit, is a token's own.
        bags = []
        for values in hidden:
            active = values.nonzero()[:, 0]
            bags.append(bag(self.down.weight.t(), active[None], values[active][None]))
        return torch.cat(bags)

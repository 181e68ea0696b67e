"""Feed-forward networks: GELU MLP, SwiGLU, Squared-ReLU and experts. A block takes any module from width d to width d.

    ffn = SquaredReLUFFN(512, 2048, sparsity=Sparsity24(warmup_steps=1000))        [..., 512] -> [..., 512]
    ffn.mode = "gather"                                                            reads only the rows that are not zero

SwiGLU: arXiv 2002.05202. Squared-ReLU: arXiv 2109.08668; it is what 2:4 activation sparsity needs (arXiv 2503.16672).

    T tokens   d width   h hidden width
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from tenfold.errors import UsageError, unknown_name
from tenfold.kernels.bag import nonzero_bag
from tenfold.kernels.native import large_pages
from tenfold.nn.sparse24 import Dropped, Sparsity24, dropped_mass, sparse24_ffn


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


MODES = ("dense", "sparse24", "gather")


class SquaredReLUFFN(nn.Module):
    """down(relu(up(x)) ** 2), in one of three modes that share the weights:

    dense      every product whole
    sparse24   2 of every 4 hidden units are kept (nn/sparse24.py); needs `sparsity`. A `SparsityController` sets it
    gather     inference: only the rows of `down` whose unit is not zero are read (kernels/bag.py). The result is that of
               `dense` up to the order of sums

    Whether several tokens at once are gathered depends on their number and on `zeros`, the share of zero units measured
    before (`measure_zeros`), never on the tokens themselves, so that no token changes the result of another.
    """

    def __init__(self, dim: int, hidden: int, bias: bool = False, *, sparsity: Sparsity24 | None = None) -> None:
        super().__init__()
        if sparsity is not None and bias:
            raise UsageError("2:4 sparsity is for networks without biases: leave out one of the two.")
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)
        self.sparsity = sparsity
        self.zeros = 0.5  # of a network that was not trained
        self.watched: list[Dropped] | None = None  # filled by every forward in training while it is a list
        self._mode: str = "dense"
        self._rows: NeuronMajor | None = None

    @property
    def mode(self) -> str:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        if mode not in MODES:
            raise unknown_name("mode", mode, MODES)
        if mode == "sparse24" and self.sparsity is None:
            raise UsageError("mode 'sparse24' needs `sparsity=Sparsity24(...)`; without it: dense, gather.")
        self._mode = mode

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        if self.watched is not None and self.training:
            self._watch(x)
        if self._mode == "sparse24" and self.sparsity is not None:
            tokens = x.reshape(-1, x.shape[-1])
            return sparse24_ffn(tokens, self.up.weight, self.down.weight, self.sparsity).view(x.shape)
        y2 = F.relu(self.up(x)).square()
        tokens = x.numel() // x.shape[-1]
        if torch.is_grad_enabled():
            self._rows = None  # training: an update follows, which a copy may not see
        # The rows that any of T tokens needs are about 1 - zeros^T of all; above one half the whole matrix is faster.
        gathers = self._mode == "gather" and tokens > 0 and not torch.is_grad_enabled()
        if gathers and (tokens == 1 or 1 - self.zeros**tokens < 0.5):
            y = nonzero_bag(self.down_rows(), y2.reshape(tokens, -1)).view(x.shape)
            return y if self.down.bias is None else y + self.down.bias
        return self.down(y2)

    def down_rows(self) -> Float[Tensor, "h d"]:
        """`down` with one row per hidden unit, copied once and again after the weights have changed."""
        weight = self.down.weight
        if self._rows is None or not self._rows.is_of(weight):
            self._rows = NeuronMajor(weight)
        return self._rows.rows

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._rows = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}  # a copy of the network makes its own

    @torch.no_grad()
    def _watch(self, x: Tensor) -> None:
        assert self.watched is not None
        fraction = self.sparsity.dense_fraction if self.sparsity else Sparsity24.dense_fraction
        self.watched.append(dropped_mass(self.up(x).flatten(0, -2), fraction))


def neuron_major(down: Float[Tensor, "d h"]) -> Float[Tensor, "h d"]:
    """A copy with one row per hidden unit, on large pages where the system has them: in bf16 a row of width 2,048 fills a
    small page, and every row that is read would first wait for its page's address."""
    rows = large_pages(torch.empty(down.shape[::-1], dtype=down.dtype, device=down.device))
    return rows.copy_(down.detach().t())


_optimizer_steps = 0  # of this process


def _count_step(*_: Any) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


# Fused optimizers write to a weight without raising its version.
register_optimizer_step_post_hook(_count_step)


class NeuronMajor:
    """`neuron_major` of a weight, and what tells whether the weight is still the one that was copied: the tensor, where its
    numbers lie, their version, the optimizer steps since, and on a CPU some of the numbers: `weight.data` has no version."""

    def __init__(self, weight: Tensor) -> None:
        self.rows = neuron_major(weight)
        self._weight, self._state, self._some = weakref.ref(weight), _state(weight), _some(weight).clone()

    def is_of(self, weight: Tensor) -> bool:
        same = self._weight() is weight and self._state == _state(weight)
        return same and (weight.device.type != "cpu" or torch.equal(self._some, _some(weight)))


def _state(weight: Tensor) -> tuple[object, ...]:
    # A tensor that was made in inference mode has no version.
    version = -1 if weight.is_inference() else weight._version
    return weight.data_ptr(), version, weight.dtype, weight.device, weight.shape, _optimizer_steps


def _some(weight: Tensor) -> Tensor:
    """About 64 numbers, from everywhere in the matrix."""
    rows, columns = weight.shape
    return weight.detach()[:: max(1, rows // 8), :: max(1, columns // 8)]


class ExpertFFN(nn.Module):
    """A Squared-ReLU network per expert; every token goes to the `top_k` experts that its router likes best, weighted by
    their softmax (Switch Transformer, arXiv 2101.03961). Token choice alone is causal: an expert that chooses its tokens
    sees the future.

    `balance` is the load-balancing loss of the last forward, E sum_e f_e p_e (equation 4): 1 where all are used alike.
    """

    def __init__(self, dim: int, hidden: int, experts: int, top_k: int = 1) -> None:
        super().__init__()
        if not 1 <= top_k <= experts:
            raise UsageError(f"top_k = {top_k} of {experts} experts: allowed is 1 to {experts}.")
        self.top_k = top_k
        self.router = nn.Linear(dim, experts, bias=False)
        self.experts = nn.ModuleList(SquaredReLUFFN(dim, hidden) for _ in range(experts))
        self.balance: Tensor | None = None

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        tokens = x.reshape(-1, x.shape[-1])
        chances = self.router(tokens).softmax(-1, dtype=torch.float32)
        weight, chosen = chances.topk(self.top_k)  # (T, k)
        y = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            token, place = (chosen == number).nonzero(as_tuple=True)
            y = y.index_add(0, token, (expert(tokens[token]) * weight[token, place, None]).to(y.dtype))
        used = F.one_hot(chosen[:, 0], len(self.experts)).float().mean(0)
        self.balance = len(self.experts) * (used * chances.mean(0)).sum()
        return y.view(x.shape)

    @property
    def macs_per_token(self) -> int:
        """The router and the experts that a token goes to."""
        expert = sum(p.numel() for p in self.experts[0].parameters())
        return self.router.weight.numel() + self.top_k * expert

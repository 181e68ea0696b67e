"""2:4 activation sparsity of Squared-ReLU networks (arXiv 2503.16672): in every 4 hidden units of a token 2 are kept.

    y3 = sparse24_ffn(x, w_up, w_down, Sparsity24())                      (T, d), (h, d), (d, h) -> (T, d)
    mask = select24(y1, dim=-1)                                           True for the 2 largest of every 4
    drops = dropped_mass(y1)                                              what each grouping would lose

Which operand of each product is sparse follows from the contraction, because sparse matrix units group along it:

    F2  y3 = y2 W2              along features of a token      mask M; y2 = relu(y1)^2 M
    B3  dx = dy1 W1'            along features                 M again: dy1 = 2 dy2 relu(y1) M, so dx is exact
    B2  dW2 = y2' dy3           along tokens of a feature      2 of every 4 tokens; the 5 % of features with most
    B4  dW1' = dy1' x           along tokens                   positives stay dense. Both approximate the gradient.

The forward mask never looks across tokens, so a later token cannot change an earlier one. Neighbouring tokens fire the
same features, so tokens are shuffled by one fixed permutation for B2 and B4.

These are the reference maths in torch alone: right everywhere and faster nowhere. Packing for sparse units: pack24.py.

    T tokens   d model width   h hidden width
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from tenfold.errors import FieldError
from tenfold.kernels.native import Backend, triton_refused
from tenfold.kernels.native import backends as bag_backends
from tenfold.steps import ALLOWED_LENGTHS, is_length, steps_of

E4M3_MAX = 448.0  # the largest number of float8_e4m3fn
DENSE_MULTIPLE = 16  # the dense features come in this many, as matrix units want them


@dataclass(frozen=True)
class Sparsity24:
    """When and how training is sparse. Lengths are steps (int) or shares of the run (float from 0.0 to 1.0)."""

    warmup_steps: int | float = 1000  # dense at the start, steps or share of the run
    cooldown_steps: int | float = 0  # dense at the end, steps or share of the run
    backward: bool = True  # sparse weight gradients too
    dense_fraction: float = 0.05  # features with most positives, whose weight gradients stay dense
    permute_tokens: bool = True  # shuffle tokens before they are grouped
    dtype: Literal["bf16", "fp8"] = "bf16"  # fp8: e4m3 in the second forward product, one scale per row and column
    max_dropped: float = 0.05  # a layer that would lose a larger share of its activation mass stays dense

    def __post_init__(self) -> None:
        for name in ("warmup_steps", "cooldown_steps"):
            if not is_length(getattr(self, name)):
                raise FieldError(f"sparsity.{name}", getattr(self, name), ALLOWED_LENGTHS)
        for name in ("dense_fraction", "max_dropped"):
            if not 0 <= getattr(self, name) <= 1:
                raise FieldError(f"sparsity.{name}", getattr(self, name), "a share from 0 to 1")

    def sparse_at(self, step: int, total: int) -> bool:
        """Whether step `step` (0-based) of a run of `total` steps is a sparse one."""
        first, last = steps_of(self.warmup_steps, total), total - steps_of(self.cooldown_steps, total)
        return first <= step < last


def select24(y: Float[Tensor, "*s"], dim: int = -1) -> Bool[Tensor, "*s"]:
    """True for the 2 largest numbers of every 4 along `dim` (largest, not largest in magnitude). Of equal numbers the
    lower index wins; NaN ranks above every number, so that it is seen and not dropped. A length that 4 does not divide
    is filled up with -Inf."""
    y = y.movedim(dim, -1)
    size = y.shape[-1]
    if size % 4:
        y = F.pad(y, (0, -size % 4), value=float("-inf"))
    part, nan = y.unflatten(-1, (-1, 4)).unbind(-1), y.isnan().unflatten(-1, (-1, 4)).unbind(-1)

    def beats(i: int, j: int) -> Tensor:
        """Whether a later number i wins over an earlier j."""
        return ((part[i] > part[j]) & ~nan[j]) | (nan[i] & ~nan[j])

    s10, s20, s30, s21, s31, s32 = (beats(i, j) for i, j in ((1, 0), (2, 0), (3, 0), (2, 1), (3, 1), (3, 2)))
    kept = (
        _two_of(~s10, ~s20, ~s30),
        _two_of(s10, ~s21, ~s31),
        _two_of(s20, s21, ~s32),
        _two_of(s30, s31, s32),
    )
    return torch.stack(kept, -1).flatten(-2)[..., :size].movedim(-1, dim)


def _two_of(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (a & b) | (c & (a | b))


@cache
def token_order(tokens: int, device: torch.device) -> tuple[Int[Tensor, " t"], Int[Tensor, " t"]]:
    """The permutation of this many tokens and its inverse: the same in every layer, step and process."""
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(tokens))
    return order.to(device), order.argsort().to(device)


def dense_features(active: Int[Tensor, " h"], fraction: float) -> Bool[Tensor, " h"]:
    """The share of features with most positives (`active` counts them), rounded up to a multiple of 16. Of equal counts
    the lower index wins."""
    h = len(active)
    wanted = -(-int(-(-fraction * h // 1)) // DENSE_MULTIPLE) * DENSE_MULTIPLE
    mask = torch.zeros(h, dtype=torch.bool, device=active.device)
    if wanted:
        mask[active.argsort(descending=True, stable=True)[:wanted]] = True
    return mask


def sparse24_ffn(
    x: Float[Tensor, "t d"], w_up: Float[Tensor, "h d"], w_down: Float[Tensor, "d h"], state: Sparsity24
) -> Float[Tensor, "t d"]:
    """relu(x W_up')^2 W_down' with 2:4 hidden units and, with `state.backward`, 2:4 weight gradients."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, w_up, w_down = x.to(dtype), w_up.to(dtype), w_down.to(dtype)
    with torch.autocast(kind, enabled=False):
        if not (state.backward and state.permute_tokens and torch.is_grad_enabled()):
            return _Sparse24.apply(x, w_up, w_down, state)
        order, inverse = token_order(len(x), x.device)
        return _Sparse24.apply(x[order], w_up, w_down, state)[inverse]


class _Sparse24(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w_up: Tensor, w_down: Tensor, state: Sparsity24) -> Tensor:
        y1 = F.linear(x, w_up)
        r = torch.where(select24(y1), y1.relu(), 0.0)  # relu(y1) M; its square is y2
        ctx.state = state
        ctx.save_for_backward(x, w_up, w_down, r)
        y2 = r.square()
        return _fp8_linear(y2, w_down) if state.dtype == "fp8" else F.linear(y2, w_down)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy3: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, w_up, w_down, r = ctx.saved_tensors
        dy1 = 2 * (dy3 @ w_down) * r
        dx = dy1 @ w_up if ctx.needs_input_grad[0] else None
        y2 = r.square()
        if ctx.state.backward:
            kept = token_mask(r, ctx.state.dense_fraction)
            # A masked NaN or Inf stays one: the guard must see it (0 * NaN is NaN).
            y2, dy1 = y2 * kept, dy1 * kept
        return dx, dy1.t() @ x, dy3.t() @ y2, None


def token_mask(r: Float[Tensor, "t h"], dense_fraction: float) -> Bool[Tensor, "t h"]:
    """What B2 and B4 keep of the activations: 2 of every 4 tokens of a feature, and all of the dense features."""
    return select24(r, 0) | dense_features((r > 0).sum(0), dense_fraction)


def _fp8_linear(y2: Tensor, w_down: Tensor) -> Tensor:
    """e4m3 operands with one scale per row of y2 and per output column of w_down, sums in fp32."""
    y, y_scale = quantize_rows(y2)
    w, w_scale = quantize_rows(w_down)
    return (F.linear(y.float(), w.float()) * y_scale * w_scale.t()).to(y2.dtype)


def quantize_rows(values: Float[Tensor, "n m"]) -> tuple[Tensor, Float[Tensor, "n 1"]]:
    """e4m3 numbers and the scale of every row, absmax / 448 (1 for a row of zeros)."""
    values = values.float()
    scale = values.abs().amax(-1, keepdim=True) / E4M3_MAX
    scale = torch.where(scale == 0, 1.0, scale)
    return (values / scale).to(torch.float8_e4m3fn), scale


class Dropped(NamedTuple):
    """Share of zeros, and of the mass of relu(y1)^2 that is lost by 2:4 along features; along tokens as they come, after
    the permutation, and with the dense features left out as well."""

    zeros: Tensor
    features: Tensor
    tokens: Tensor
    permuted: Tensor
    split: Tensor


def dropped_mass(y1: Float[Tensor, "t h"], dense_fraction: float = 0.05) -> Dropped:
    """Of the hidden units before the activation of T tokens in their order. Scalars on the tensor's device."""
    y1 = y1.detach().float()
    r = y1.relu()
    y2 = r.square()
    total = y2.sum().clamp_min(1e-30)
    order, _ = token_order(len(y1), y1.device)
    shuffled = y2[order]
    along = select24(shuffled, 0)
    dense = dense_features((r > 0).sum(0), dense_fraction)
    losses = (y2 * ~select24(y1), y2 * ~select24(y2, 0), shuffled * ~along, shuffled * ~(along | dense))
    return Dropped((y1 <= 0).float().mean(), *(lost.sum() / total for lost in losses))


def backends() -> list[Backend]:
    """What computes 2:4 products and sparse decoding here, and why something else does not."""
    no_gpu = triton_refused()
    vendor = no_gpu if "CUDA" in no_gpu else ""
    if not vendor and torch.cuda.get_device_capability()[0] < 8:
        vendor = "the device has no sparse matrix units: they begin with compute capability 8.0"
    if not vendor and not torch.backends.cusparselt.is_available():
        vendor = "this torch was built without cuSPARSELt"
    gathers = [Backend(f"gather {b.name}", b.available, b.refused_because) for b in bag_backends()]
    return [
        Backend("masked dense", True),
        Backend("triton pack", not no_gpu, no_gpu),
        Backend("cusparselt", not vendor, vendor),
        *gathers,
    ]

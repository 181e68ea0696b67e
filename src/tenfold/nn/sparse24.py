"""2:4 activation sparsity for squared-ReLU networks: which values stay, and the exact and approximate gradients of that.

    y = sparse24_ffn(x, w_up, w_down, Sparsity24())        (T, d) -> (T, d), differentiable

    F1  Y1 = X W1'           dense
    F2  Y3 = Y2 W2'          Y2 = relu(Y1)^2 keeps the 2 largest *raw* values of every 4 features of a token (mask M)
    B1  dY2 = dY3 W2         dense
    B3  dX = dY1 W1          dY1 = 2 dY2 relu(Y1) M, the mask of the forward again: exact
    B2  dW2 = dY3' Y2        every 4 *tokens* of a feature keep 2, in a random order of the tokens (mask N); the few
    B4  dW1 = dY1' X         features that fire most stay whole. B2 and B4 use the same N: approximate

Accelerating Transformer Inference and Training with 2:4 Activation Sparsity (arXiv 2503.16672). The groups run along the
dimension that a product sums over, because that is where sparse matrix units take them. The forward mask never looks at
another token, so the network stays causal; N touches gradients alone.

This file is the reference, in plain torch on any device: it masks and multiplies densely, which gives the right numbers
and no speed. pack24.py writes the operands of sparse matrix units; `backends` says what can use them here.

    T tokens   d model width   h hidden width
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from tenfold.errors import FieldError
from tenfold.nn.native import Backend, triton_refused

GROUP, KEPT = 4, 2
FP8_LARGEST = 448.0  # of e4m3
TINY = torch.finfo(torch.float32).tiny
DENSE_MULTIPLE = 16  # the whole features are a product of their own, whose inner size units want in multiples of this


@dataclass(frozen=True)
class Sparsity24:
    """When and how a squared-ReLU network is 2:4 sparse in training. `pattern` none is a network that never is."""

    pattern: Literal["none", "2:4"] = "2:4"
    warmup_steps: int = 1000  # dense steps at the start
    cooldown_steps: int = 0  # dense steps at the end
    backward: bool = True  # the products of the weight gradients are sparse too
    dense_fraction: float = 0.05  # share of features, those that fire most, kept whole in the weight gradients
    permute_tokens: bool = True  # a random order of the tokens before they are grouped: neighbours fire alike
    dtype: Literal["bf16", "fp8"] = "bf16"  # fp8: e4m3 operands of the second product, one scale a row
    max_dropped: float = 0.05  # a layer that would lose a larger share of its activation mass stays dense

    def __post_init__(self) -> None:
        for name in ("warmup_steps", "cooldown_steps"):
            if getattr(self, name) < 0:
                raise FieldError(f"sparsity.{name}", getattr(self, name), "a whole number >= 0")
        for name in ("dense_fraction", "max_dropped"):
            if not 0 <= getattr(self, name) <= 1:
                raise FieldError(f"sparsity.{name}", getattr(self, name), "a share in [0, 1]")


def select24(y: Float[Tensor, "..."], dim: int = -1) -> Bool[Tensor, "..."]:
    """True at the 2 largest values of each group of 4 along `dim`. Of equal values the one with the lower index stays, and
    NaN ranks above every number. A last group that is not full has as few of its values beaten by nothing."""
    size = y.shape[dim]
    moved = y.movedim(dim, -1)
    if size % GROUP:
        moved = torch.nn.functional.pad(moved, (0, -size % GROUP), value=-torch.inf)
    values = moved.unflatten(-1, (-1, GROUP)).unbind(-1)
    beaten = [torch.zeros(values[0].shape, dtype=torch.uint8, device=y.device) for _ in range(GROUP)]
    for i in range(GROUP):
        for j in range(i + 1, GROUP):
            first = (values[i] >= values[j]) | values[i].isnan()
            beaten[j] += first
            beaten[i] += ~first
    mask = (torch.stack(beaten, -1) < KEPT).flatten(-2)
    return mask[..., :size].movedim(-1, dim)


def sparse24_ffn(
    x: Float[Tensor, "t d"],
    w_up: Float[Tensor, "h d"],
    w_down: Float[Tensor, "d h"],
    config: Sparsity24,
    meter: Float[Tensor, "3"] | None = None,
) -> Float[Tensor, "t d"]:
    """relu(x w_up')^2 w_down' with 2:4 activations. The gradient of x is that of the masked forward exactly; those of the
    weights are too unless `config.backward`. A NaN in the hidden values survives into the result. `meter`: see `measure`.
    """
    return _Sparse24.apply(x, w_up, w_down, config, meter)


def measure(y1: Float[Tensor, "*b h"], meter: Float[Tensor, "3"]) -> None:
    """Adds to `meter` the share of zeros, the share of activation mass (the sum of relu(y1)^2) that the forward's
    grouping loses, and 1. Nothing waits for the device."""
    y2 = y1.float().relu().square()
    lost = 1 - torch.where(select24(y1), y2, 0.0).sum() / y2.sum().clamp_min(TINY)
    meter += torch.stack([(y2 == 0).float().mean(), lost, torch.ones_like(lost)])


def whole_features(r: Float[Tensor, "t h"], share: float) -> Bool[Tensor, "h"]:
    """The features with most positive values in this batch, `share` of them rounded up to a multiple of 16."""
    h = r.shape[1]
    count = min(-(-round(share * h) // DENSE_MULTIPLE) * DENSE_MULTIPLE, h)
    order = (r > 0).sum(0).argsort(descending=True, stable=True)
    return torch.zeros(h, dtype=torch.bool, device=r.device).index_fill(0, order[:count], True)


def select_tokens(r: Float[Tensor, "t h"], config: Sparsity24) -> Bool[Tensor, "t h"]:
    """Mask N of the weight gradients: 2 of every 4 tokens per feature, and everything of the whole features.

    The tokens are taken in a fixed random order and the mask is put back into theirs, which is the same as permuting x
    and undoing it on the result, without moving either.
    """
    if config.permute_tokens:
        order, back = _permutation(len(r), r.device)
        mask = select24(r[order], 0)[back]
    else:
        mask = select24(r, 0)
    return mask | whole_features(r, config.dense_fraction)


@lru_cache(maxsize=8)
def _permutation(tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """One order for every number of tokens, drawn from its own seed, so that no step's random numbers depend on it."""
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(tokens))
    return order.to(device), order.argsort().to(device)


def rounded_fp8(y: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
    """What e4m3 keeps of every row under a scale of its own (the largest magnitude over 448), in fp32."""
    codes, scale = quantize_rows(y)
    return codes.float() * scale


def quantize_rows(y: Float[Tensor, "r c"]) -> tuple[Tensor, Float[Tensor, "r 1"]]:
    """(e4m3 codes, fp32 scale of each row): y is about codes * scale. A row of zeros has scale 0; one with NaN is NaN."""
    wide = y.float()
    scale = wide.abs().amax(1, keepdim=True) / FP8_LARGEST
    return torch.where(scale == 0, 0.0, wide / scale).to(torch.float8_e4m3fn), scale


class _Sparse24(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w_up: Tensor, w_down: Tensor, config: Sparsity24, meter: Tensor | None) -> Tensor:
        y1 = x @ w_up.t()
        if meter is not None:
            measure(y1, meter)
        # `where` and not a product: 0 times a dropped infinity would be NaN.
        r = torch.where(select24(y1), y1, 0.0).relu()
        ctx.config = config
        ctx.save_for_backward(x, w_up, w_down, r)
        if config.dtype == "fp8":
            return (rounded_fp8(r.square()) @ rounded_fp8(w_down).t()).to(x.dtype)
        return r.square() @ w_down.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, w_up, w_down, r = ctx.saved_tensors
        # r is 0 wherever the mask is False, so it carries the mask into this product.
        d_y1 = 2 * (grad @ w_down) * r
        d_x = d_y1 @ w_up if ctx.needs_input_grad[0] else None
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            return d_x, None, None, None, None
        if ctx.config.backward:
            mask = select_tokens(r, ctx.config)
            r, d_y1 = torch.where(mask, r, 0.0), torch.where(mask, d_y1, 0.0)
        return d_x, d_y1.t() @ x, grad.t() @ r.square(), None, None


def dropped_mass(y1: Float[Tensor, "t h"], config: Sparsity24) -> dict[str, float]:
    """Shares of the activation mass (the sum of relu(y1)^2) that each grouping would lose, and the share of zeros.

    features: the forward. neighbours, permuted, permuted + whole: the weight gradients with tokens as they stand, in
    random order, and with the whole features besides.
    """
    y2 = y1.float().relu().square()
    total = y2.sum().clamp_min(TINY)
    kept = torch.where(select24(y1), y2, 0.0)

    def lost(mask: Tensor) -> float:
        return float(1 - torch.where(mask, kept, 0.0).sum() / kept.sum().clamp_min(TINY))

    order, back = _permutation(len(y1), y1.device)
    permuted = select24(kept[order], 0)[back]
    return {
        "zeros": float((y1 <= 0).float().mean()),
        "features": float(1 - kept.sum() / total),
        "neighbours": lost(select24(kept, 0)),
        "permuted": lost(permuted),
        "permuted + whole": lost(permuted | whole_features(kept, config.dense_fraction)),
    }


def backends() -> list[Backend]:
    """What can compute 2:4 products here, and why not: the reference, the fused packing kernel, the vendor's products."""
    pack = triton_refused()
    if pack:
        vendor = pack if "CUDA" in pack else ""
    else:
        major = torch.cuda.get_device_capability()[0]
        vendor = "" if major >= 8 else f"compute capability {major}: sparse matrix units begin with 8.0"
    if not vendor and not torch.backends.cusparselt.is_available():
        vendor = "this torch was built without cuSPARSELt"
    return [Backend("torch", True), Backend("triton pack", not pack, pack), Backend("cusparselt", not vendor, vendor)]

"""Multi-head and grouped-query attention: full, causal, masked, cached; and the merge of two partial attentions.

One projection makes q, k and v (rows in that order). Softmax attention: arXiv 1706.03762; grouped queries: arXiv
2305.13245; merging by log-sum-exp: arXiv 2205.14135, section 3.

    B batch   N queries   T keys   H heads   G key/value heads   D head width
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tenfold.errors import UsageError
from tenfold.nn.rope import Rotation

PLAIN_BELOW = 128  # keys; on a CPU the backward of the fused kernel is slower than three plain products up to here


@dataclass(frozen=True)
class AttentionConfig:
    """heads, key/value heads (None: as many), head width (None: dim / heads); `mask_k_bias` fixes the bias of k at 0.
    `input_dim` is the width of what q, k and v are made from (None: dim, the width of the output)."""

    dim: int
    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    qkv_bias: bool = True
    out_bias: bool = True
    mask_k_bias: bool = False
    causal: bool = False
    input_dim: int | None = None

    def __post_init__(self) -> None:
        if self.head_dim is None and self.dim % self.heads:
            raise UsageError(f"dim = {self.dim} is not a multiple of heads = {self.heads}.")
        if self.heads % (self.kv_heads or self.heads):
            raise UsageError(f"heads = {self.heads} is not a multiple of kv_heads = {self.kv_heads}.")

    @property
    def width(self) -> int:
        return self.head_dim or self.dim // self.heads

    @property
    def groups(self) -> int:
        return self.kv_heads or self.heads


@runtime_checkable
class KeyValues(Protocol):
    """One layer's keys and values of the tokens before: cache.py has the simple one, pages.py the shared one."""

    def attend(
        self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n d"], mask: Tensor | None
    ) -> Float[Tensor, "b h n d"]:
        """Adds the new rows k, v behind those held and attends. Every query sees all keys before the last S; of the last
        S (the new rows, and older ones that are still in question) it sees those that `mask` (N, S) or (B, 1, N, S)
        allows, and with `mask` None the ones up to its own."""
        ...


class Attention(nn.Module):
    """x (B, N, dim) -> (B, N, dim). `mask` is True (or 0) where a query may look, False (or -inf) where it may not."""

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.qkv = nn.Linear(c.input_dim or c.dim, (c.heads + 2 * c.groups) * c.width, bias=c.qkv_bias)
        self.out = nn.Linear(c.heads * c.width, c.dim, bias=c.out_bias)

    def forward(
        self,
        x: Float[Tensor, "b n i"],
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> Float[Tensor, "b n d"]:
        """`cache` makes `mask` that of `KeyValues.attend`; attention is causal then."""
        q, k, v = self.project(x, rotation)
        if cache is not None:
            y = cache.attend(q, k, v, mask)
        else:
            y = attend(q, k, v, mask, causal=self.config.causal and mask is None)
        return self.out(y.transpose(1, 2).flatten(2))

    def project(self, x: Float[Tensor, "b n i"], rotation: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, H, N, D), k and v (B, G, N, D); q and k are turned together."""
        c = self.config
        if c.mask_k_bias and self.qkv.bias is not None:
            query, key, value = self.qkv.bias.split([c.heads * c.width, c.groups * c.width, c.groups * c.width])
            flat = F.linear(x, self.qkv.weight, torch.cat([query, torch.zeros_like(key), value]))
        else:
            flat = self.qkv(x)
        heads = flat.unflatten(-1, (-1, c.width)).transpose(1, 2)
        if rotation is None:
            q, k, v = heads.split([c.heads, c.groups, c.groups], dim=1)
            return q, k, v
        turned, v = heads.split([c.heads + c.groups, c.groups], dim=1)
        q, k = rotation(turned).split([c.heads, c.groups], dim=1)
        return q, k, v


def attend(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g t d"],
    v: Float[Tensor, "b g t d"],
    mask: Tensor | None = None,
    causal: bool = False,
) -> Float[Tensor, "b h n d"]:
    """softmax(q k^T / sqrt(D)) v, heads of a group sharing k and v. Picks the faster kernel for the place at hand."""
    training = q.requires_grad and torch.is_grad_enabled()
    if training and q.device.type == "cpu" and k.shape[2] <= PLAIN_BELOW:
        return _plain(q, k, v, causal_mask(q.shape[2], k.shape[2], q.device) if causal else mask)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    repeat = q.shape[1] // k.shape[1]
    if repeat > 1:
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1).to(v.dtype) @ v


def causal_mask(queries: int, keys: int, device: torch.device) -> Bool[Tensor, "n t"]:
    """Query i of the last `queries` positions sees the keys up to its own."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def tail_mask(mask: Bool[Tensor, "*b n s"], keys: int) -> Bool[Tensor, "*b n t"]:
    """A mask over the last S of `keys` keys as one over all of them; those before are visible."""
    return F.pad(mask, (keys - mask.shape[-1], 0), value=True)


def attend_lse(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g t d"],
    v: Float[Tensor, "b g t d"],
    mask: Tensor | None = None,
) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b h n"]]:
    """Attention with its log-sum-exp, in fp32, so that two of them can be merged. A row that sees nothing is 0, -inf."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    lse = scores.logsumexp(-1)
    weights = (scores - lse.clamp_min(torch.finfo(torch.float32).min)[..., None]).exp()
    return (weights @ v.float()).to(q.dtype), lse


def merge_attention(
    first: tuple[Float[Tensor, "b h n d"], Float[Tensor, "b h n"]],
    second: tuple[Float[Tensor, "b h n d"], Float[Tensor, "b h n"]],
) -> Float[Tensor, "b h n d"]:
    """Attention over the union of two disjoint sets of keys, from the attention over each."""
    (o1, l1), (o2, l2) = first, second
    lse = torch.logaddexp(l1, l2).clamp_min(torch.finfo(torch.float32).min)
    return o1 * (l1 - lse).exp()[..., None].to(o1.dtype) + o2 * (l2 - lse).exp()[..., None].to(o2.dtype)

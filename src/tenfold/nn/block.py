"""THE transformer block. ViT, Llama, drafters, text towers and speech encoders are configurations of it.

    pre-norm    x + scale1 * attention(norm1 x),   x + scale2 * ffn(norm2 x)
    post-norm   norm1(x + attention(x)),           norm2(x + ffn(x))

It takes any feed-forward module from width d to width d. Several groups of sequences of different lengths (multi-crop
training) go through it together: every token-wise operation runs once over all tokens, attention once per group.

LayerScale: arXiv 2103.17239. Stochastic depth: arXiv 1603.09382, in DINOv2's form that drops *samples* and computes the
kept rows alone.

    B batch   N tokens   D width
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenfold.nn.attention import Attention, AttentionConfig, KeyValues, attend, causal_mask
from tenfold.nn.norm import NormKind, make_norm
from tenfold.nn.rope import Rotation


@dataclass(frozen=True)
class BlockConfig:
    """`layer_scale` is the initial gain (None: no LayerScale); `drop_path` the share of samples dropped in training."""

    attention: AttentionConfig
    norm: NormKind = "layer"
    norm_eps: float = 1e-6
    norm_first: bool = True
    layer_scale: float | None = None
    drop_path: float = 0.0


class Block(nn.Module):
    """x (B, N, D) -> (B, N, D), or a list of such groups -> the list of results."""

    is_layer = True  # activation checkpointing and FSDP take it as one unit (engine/task.py: Task.layers)

    def __init__(self, config: BlockConfig, ffn: nn.Module) -> None:
        super().__init__()
        self.config = config
        dim = config.attention.dim
        self.norm1 = make_norm(config.norm, dim, config.norm_eps)
        self.attention = Attention(config.attention)
        self.norm2 = make_norm(config.norm, dim, config.norm_eps)
        self.ffn = ffn
        scale = config.layer_scale
        self.scale1 = nn.Parameter(torch.full((dim,), scale)) if scale is not None else None
        self.scale2 = nn.Parameter(torch.full((dim,), scale)) if scale is not None else None

    def forward(
        self,
        x: Tensor | list[Tensor],
        rotation: Rotation | Sequence[Rotation | None] | None = None,
        mask: Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> Tensor | list[Tensor]:
        """`mask` and `cache` go with a single group."""
        if isinstance(x, list):
            rotations = list(rotation) if isinstance(rotation, Sequence) else [rotation] * len(x)
            assert mask is None, "groups of sequences take no mask"
            assert cache is None, "groups of sequences take no cache"
            return self._groups(x, rotations)
        assert not isinstance(rotation, Sequence)
        if self.training and self.config.drop_path > 0:
            return self._groups([x], [rotation])[0]
        if not self.config.norm_first:
            x = self.norm1(x + self.attention(x, rotation, mask, cache))
            return self.norm2(x + self.ffn(x))
        y = self.attention(self.norm1(x), rotation, mask, cache)
        x = x + (y if self.scale1 is None else y * self.scale1)
        y = self.ffn(self.norm2(x))
        return x + (y if self.scale2 is None else y * self.scale2)

    def _groups(self, xs: list[Tensor], rotations: list[Rotation | None]) -> list[Tensor]:
        def attention(groups: list[Tensor]) -> list[Tensor]:
            return self._attend_groups(groups, rotations)

        def ffn(groups: list[Tensor]) -> list[Tensor]:
            return _unpack(self.ffn(self.norm2(_pack(groups)) if self.config.norm_first else _pack(groups)), groups)

        xs = self._residual(xs, attention, self.scale1, None if self.config.norm_first else self.norm1)
        return self._residual(xs, ffn, self.scale2, None if self.config.norm_first else self.norm2)

    def _attend_groups(self, groups: list[Tensor], rotations: list[Rotation | None]) -> list[Tensor]:
        packed = _pack(groups)
        q, k, v = self.attention.project(self.norm1(packed) if self.config.norm_first else packed)
        outputs, start = [], 0
        for x, rotation in zip(groups, rotations):
            b, n = x.shape[:2]
            # (1, H, tokens, D) of all groups -> (b, H, n, D) of this one
            part = [t[0, :, start : start + b * n].unflatten(1, (b, n)).transpose(0, 1) for t in (q, k, v)]
            if rotation is not None:
                part[0], part[1] = rotation(part[0]), rotation(part[1])
            mask = causal_mask(n, n, x.device) if self.config.attention.causal else None
            outputs.append(attend(part[0], part[1], part[2], mask).transpose(1, 2).flatten(2))
            start += b * n
        return _unpack(self.attention.out(_pack(outputs)), groups)

    def _residual(
        self,
        xs: list[Tensor],
        branch: Callable[[list[Tensor]], list[Tensor]],
        scale: Tensor | None,
        norm: nn.Module | None,
    ) -> list[Tensor]:
        if not (self.training and self.config.drop_path > 0):
            ys = [y if scale is None else y * scale for y in branch(xs)]
            return [x + y if norm is None else norm(x + y) for x, y in zip(xs, ys)]
        kept = [torch.randperm(len(x), device=x.device)[: kept_samples(len(x), self.config.drop_path)] for x in xs]
        ys = branch([x[rows] for x, rows in zip(xs, kept)])
        out = []
        for x, rows, y in zip(xs, kept, ys):
            y = (y if scale is None else y * scale).to(x.dtype)
            x = x.index_add(0, rows, y, alpha=len(x) / len(rows))
            out.append(x if norm is None else norm(x))
        return out


def kept_samples(batch: int, drop_path: float) -> int:
    """How many samples of a batch stochastic depth keeps: never fewer than one."""
    return max(int(batch * (1 - drop_path)), 1)


def _pack(groups: list[Float[Tensor, "_ _ d"]]) -> Float[Tensor, "1 tokens d"]:
    if len(groups) == 1:
        return groups[0].reshape(1, -1, groups[0].shape[-1])
    return torch.cat([x.reshape(-1, x.shape[-1]) for x in groups])[None]


def _unpack(packed: Float[Tensor, "1 tokens d"], like: list[Tensor]) -> list[Tensor]:
    parts = packed[0].split([x.shape[0] * x.shape[1] for x in like])
    return [part.unflatten(0, x.shape[:2]) for part, x in zip(parts, like)]

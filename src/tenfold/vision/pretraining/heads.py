"""Projection heads of self-distillation: an MLP to a narrow bottleneck, L2 norm, then prototypes.

DINOv2 and DINOv3 use Linear-GELU-Linear-GELU-Linear. `batch_norm=True` puts batch statistics after each Linear instead
(a departure from both papers that small runs need: see docs/vision.md), and always uses the statistics of the batch at
hand, for student and teacher alike, which needs no running averages.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tenfold.config import require
from tenfold.engine.parallel import Collectives


@dataclass(frozen=True)
class HeadConfig:
    """hidden and bottleneck widths, number of prototypes; `unit_prototypes` is weight norm with gain 1 (DINOv2)."""

    hidden: int = 2048
    bottleneck: int = 256
    prototypes: int = 65536
    batch_norm: bool = False
    unit_prototypes: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden", "bottleneck", "prototypes"):
            require(getattr(self, name) >= 1, f"head.{name}", getattr(self, name), "a whole number >= 1")


class BatchStatistics(nn.Module):
    """Normalises by the mean and variance of the batch at hand, in fp32: of the global batch when `ranks` are several."""

    def __init__(self, width: int, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.ranks = Collectives()
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        x = x.float()
        if self.ranks.world == 1:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        moments = torch.cat([x.new_full((1,), len(x)), x.sum(0), x.square().sum(0)])
        count, total, squares = self.ranks.all_reduce_sum(moments).split([1, x.shape[1], x.shape[1]])
        mean = total / count
        x = (x - mean) * torch.rsqrt((squares / count - mean.square()).clamp_min(0) + self.eps)
        if self.weight is not None and self.bias is not None:
            x = x * self.weight + self.bias
        return x


class PrototypeHead(nn.Module):
    """`bottleneck(x)`: the unit vector before the prototypes; `logits(z)`: its products with them."""

    def __init__(self, dim: int, config: HeadConfig) -> None:
        super().__init__()
        widths = [dim, config.hidden, config.hidden, config.bottleneck]
        layers: list[nn.Module] = []
        for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
            last = i == len(widths) - 2
            linear = nn.Linear(n_in, n_out, bias=not config.batch_norm)
            # Fan-in scale where batch statistics follow (they set the gain); the papers' 0.02 otherwise.
            nn.init.trunc_normal_(linear.weight, std=min(0.05, n_in**-0.5) if config.batch_norm else 0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
            layers.append(linear)
            if config.batch_norm:
                layers.append(BatchStatistics(n_out, affine=not last))
            if not last:
                layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers)
        self.prototypes = nn.Linear(config.bottleneck, config.prototypes, bias=False)
        nn.init.trunc_normal_(self.prototypes.weight, std=0.02)
        self.unit_prototypes = config.unit_prototypes

    def bottleneck(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n z"]:
        return F.normalize(self.mlp(x).float(), dim=-1, eps=1e-12)

    def logits(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n k"]:
        weight = self.prototypes.weight
        if self.unit_prototypes:
            weight = F.normalize(weight.float(), dim=-1)
        with torch.autocast(z.device.type, enabled=False):  # cosines over a temperature of 0.03: bf16 is too coarse
            return F.linear(z, weight.float())

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return self.logits(self.bottleneck(x))

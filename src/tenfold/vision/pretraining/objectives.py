"""The self-distillation losses of DINOv2 and DINOv3: Sinkhorn-Knopp targets, DINO, iBOT and KoLeo.

Papers: DINOv2 (arXiv 2304.07193, section 4), DINOv3 (arXiv 2508.10104, section 3), Sinkhorn-Knopp centring as in SwAV.
Everything is computed in fp32 whatever the network ran in.

Across ranks the losses see the *global* batch through `ranks` (engine/parallel.py); in one process it is the identity.

    B batch of this rank   S student crops   T teacher crops   K prototypes   M masked patches   D feature width
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tenfold.config import require
from tenfold.engine.parallel import Collectives
from tenfold.engine.schedule import Schedule, constant
from tenfold.steps import ALLOWED_LENGTHS, is_length

ALONE = Collectives()


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights and temperatures of the losses.

    `centering` softmax is DINOv2's other way: of the logits less their running mean. `koleo_crops`: the released code
    takes every global crop, the papers say the first.
    """

    ibot: float = 1.0  # weight of the masked-patch loss; 0 leaves out its head and the masks
    koleo: float = 0.1  # weight per crop of the loss that spreads features
    koleo_crops: Literal["all", "first"] = "all"
    local: Schedule = field(default_factory=lambda: constant(1.0))  # weight of the local crops' part
    centering: Literal["sinkhorn", "softmax"] = "sinkhorn"
    student_temperature: float = 0.1
    teacher_temperature: Schedule = field(default_factory=lambda: Schedule("constant", 0.07, start=0.04, warmup=0.3))
    momentum: Schedule = field(default_factory=lambda: Schedule("cosine", peak=0.992, final=1.0))
    freeze_prototypes: int | float = 0  # steps, or share of the run, in which the prototypes do not move
    mask_probability: float = 0.5  # share of global crops that are masked for iBOT
    mask_ratio: tuple[float, float] = (0.1, 0.5)

    def __post_init__(self) -> None:
        for name in ("ibot", "koleo"):
            require(getattr(self, name) >= 0, f"objective.{name}", getattr(self, name), "a weight >= 0")
        require(self.student_temperature > 0, "objective.student_temperature", self.student_temperature, "a number > 0")
        require(
            0 <= self.mask_probability <= 1, "objective.mask_probability", self.mask_probability, "a share in [0, 1]"
        )
        frozen = self.freeze_prototypes
        require(is_length(frozen), "objective.freeze_prototypes", frozen, ALLOWED_LENGTHS)
        low, high = self.mask_ratio
        require(0 < low <= high < 1, "objective.mask_ratio", self.mask_ratio, "two rising shares in (0, 1)")


@torch.no_grad()
def sinkhorn_knopp(
    logits: Float[Tensor, "n k"],
    temperature: float,
    iterations: int = 3,
    ranks: Collectives = ALONE,
) -> Float[Tensor, "n k"]:
    """Teacher targets: exp(logits / temperature), alternately normalised over samples and over prototypes.

    The last normalisation is over prototypes, so every row of the result sums to 1. The factors K and B of the usual
    statement cancel there and are left out. Worked in log space: the plain form overflows once logits / temperature
    passes 88. A rank may hold any number of rows, none included.
    """
    logits = logits.float()
    # Subtracting before dividing keeps the digits of the entries that matter; both shifts cancel exactly.
    row_max = logits.amax(1, keepdim=True)
    local_top = row_max.max() if len(row_max) else logits.new_tensor(-torch.inf)
    top = ranks.maximum(local_top.reshape(1))
    log_q = (logits - row_max) / temperature + (row_max - top) / temperature
    for _ in range(iterations):
        log_q = log_q - _logsumexp_over_samples(log_q, ranks)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp()


def _logsumexp_over_samples(log_q: Tensor, ranks: Collectives) -> Tensor:
    local = log_q.amax(0) if len(log_q) else log_q.new_full(log_q.shape[1:], -torch.inf)
    top = ranks.maximum(local)
    return top + ranks.all_reduce_sum((log_q - top).exp().sum(0)).log()


def softmax_center(
    logits: Float[Tensor, "n k"], center: Float[Tensor, " k"], temperature: float
) -> Float[Tensor, "n k"]:
    """DINOv2's other option for targets: softmax of the centred logits (`center` is their running mean)."""
    return F.softmax((logits.float() - center) / temperature, dim=1)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    logits = logits.float()  # shifted before the division, which keeps the digits of the entries that matter
    return F.log_softmax((logits - logits.detach().amax(-1, keepdim=True)) / temperature, dim=-1)


def dino_loss(
    student_logits: Float[Tensor, "s b k"],
    teacher_probs: Float[Tensor, "t b k"],
    temperature: float = 0.1,
    skip_same: bool = False,
) -> Float[Tensor, ""]:
    """Cross-entropy of every student crop with every teacher crop, a mean over pairs and batch.

    skip_same leaves out the pairs s = t (the same global crop on both sides).
    """
    log_p = _log_softmax(student_logits, temperature)
    crops, teachers = len(student_logits), len(teacher_probs)
    targets = teacher_probs.sum(0)
    if not skip_same:
        return -(targets * log_p.sum(0)).sum(-1).mean() / (crops * teachers)
    same = min(crops, teachers)
    pairs = crops * teachers - same
    total = (targets * log_p.sum(0)).sum(-1) - (teacher_probs[:same] * log_p[:same]).sum((0, -1))
    return -total.mean() / pairs


def ibot_loss(
    student_logits: Float[Tensor, "m k"],
    teacher_probs: Float[Tensor, "m k"],
    weights: Float[Tensor, " m"],
    samples: int,
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """Masked-patch cross-entropy. `weights` is 1 / (masked patches of that sample); the sum is divided by `samples`,
    the number of global crops on this rank, unmasked ones included."""
    log_p = _log_softmax(student_logits, temperature)
    return -((teacher_probs * log_p).sum(-1) * weights).sum() / samples


def koleo_loss(features: Float[Tensor, "b d"], ranks: Collectives = ALONE, eps: float = 1e-8) -> Float[Tensor, ""]:
    """-mean log(distance to the nearest neighbour in the batch + eps) on L2-normalised features.

    `features` are the student's, before the head (DINOv2, equation 5 of arXiv 2304.07193 and its reference 33).
    Neighbours are sought in the global batch, of which every rank holds an equal part.
    """
    x = F.normalize(features.float(), dim=-1)
    everyone = ranks.all_gather(x)
    with torch.no_grad():
        similarity = x @ everyone.T
        own = torch.arange(len(x), device=x.device)
        similarity[own, own + ranks.rank * len(x)] = -torch.inf
        neighbor = similarity.argmax(1)
    return -torch.log((x - everyone[neighbor]).norm(dim=-1) + eps).mean()

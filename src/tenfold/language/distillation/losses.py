"""Distillation losses of a drafter (KL, total variation, acceptance likelihood), each the mean over the positions given.

    losses, alpha = distillation_loss("kl", target_probabilities, logits)

With p the target's distribution on the draft vocabulary and q the drafter's, alpha = sum min(p, q) is the probability that a
token drawn from q is accepted at temperature 1 (arXiv 2211.17192, section 3), so 1 - alpha is their total variation.

    kl         cross-entropy -sum p log q (the gradient of KL; EAGLE-3)
    tv         1 - alpha
    nla        -log alpha
    lk_hybrid  w KL + (1 - w) TV with w = exp(-3 alpha), which turns to TV where the drafter is already good

    M positions   W draft vocabulary   H width of the hidden state
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LossName = Literal["kl", "tv", "nla", "lk_hybrid"]
HYBRID_RATE = 3.0
CLASSIFICATION_WEIGHT = 0.1  # EAGLE-1: of the cross-entropy beside the feature loss


def distillation_loss(
    name: LossName, target: Float[Tensor, "m w"], logits: Float[Tensor, "m w"]
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """(loss, alpha) of every position; `target` holds probabilities (rows sum to 1) in fp32."""
    log_q = logits.float().log_softmax(-1)
    if name == "kl":
        with torch.no_grad():
            alpha = torch.minimum(target, log_q.exp()).sum(-1)
        return -(target * log_q).sum(-1), alpha
    alpha = torch.minimum(target, log_q.exp()).sum(-1)
    if name == "tv":
        return 1 - alpha, alpha.detach()
    if name == "nla":
        return -alpha.clamp_min(torch.finfo(torch.float32).tiny).log(), alpha.detach()
    weight = (-HYBRID_RATE * alpha.detach()).exp()
    return weight * -(target * log_q).sum(-1) + (1 - weight) * (1 - alpha), alpha.detach()


def eagle1_loss(
    predicted: Float[Tensor, "m h"],
    features: Float[Tensor, "m h"],
    target: Float[Tensor, "m w"],
    logits: Float[Tensor, "m w"],
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """SmoothL1 between predicted and true features plus 0.1 times the cross-entropy (EAGLE-1, section 3.2)."""
    distance = F.smooth_l1_loss(predicted.float(), features.float(), reduction="none").mean(-1)
    entropy, alpha = distillation_loss("kl", target, logits)
    return distance + CLASSIFICATION_WEIGHT * entropy, alpha

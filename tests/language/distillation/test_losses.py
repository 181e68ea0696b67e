"""Distillation losses agree with their definitions, and are least where the drafter is the target."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from tenfold.language.distillation.losses import LossName, distillation_loss, eagle1_loss


@pytest.mark.parametrize("name", get_args(LossName))
def test_no_drafter_has_less_loss_than_the_target_itself(name: LossName) -> None:
    g = torch.Generator().manual_seed(0)
    p = torch.randn(6, 9, generator=g).softmax(-1)
    least, alpha = distillation_loss(name, p, p.log())
    torch.testing.assert_close(alpha, torch.ones(6))
    for _ in range(20):
        loss, found = distillation_loss(name, p, p.log() + torch.randn(6, 9, generator=g))
        assert bool((loss > least - 1e-6).all())
        assert bool((found < 1).all())


def test_eagle1_adds_a_tenth_of_the_cross_entropy_to_the_distance_of_features() -> None:
    g = torch.Generator().manual_seed(1)
    predicted, features = torch.randn(4, 8, generator=g) * 3, torch.randn(4, 8, generator=g)
    p, logits = torch.randn(4, 5, generator=g).softmax(-1), torch.randn(4, 5, generator=g)
    off = (predicted - features).abs()
    distance = torch.where(off < 1, off**2 / 2, off - 0.5).mean(-1)
    loss, _ = eagle1_loss(predicted, features, p, logits)
    torch.testing.assert_close(loss, distance - 0.1 * (p * logits.log_softmax(-1)).sum(-1))


def test_losses_agree_with_their_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(5, 7, generator=generator).softmax(-1)
    logits = torch.randn(5, 7, generator=generator)
    q = logits.softmax(-1)
    alpha = 1 - (p - q).abs().sum(-1) / 2
    kl = -(p * q.log()).sum(-1)
    weight = (-3 * alpha).exp()
    wanted = {"kl": kl, "tv": 1 - alpha, "nla": -alpha.log(), "lk_hybrid": weight * kl + (1 - weight) * (1 - alpha)}
    for name, value in wanted.items():
        loss, seen = distillation_loss(name, p, logits)  # pyright: ignore
        torch.testing.assert_close(loss, value)
        torch.testing.assert_close(seen, alpha)
    assert distillation_loss("nla", torch.eye(2), torch.tensor([[-200.0, 200.0], [200.0, -200.0]]))[0].isfinite().all()

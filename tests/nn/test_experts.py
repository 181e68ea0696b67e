"""Experts: each token by its own best ones, balanced, and causal."""

from __future__ import annotations

import pytest
import torch

from tenfold.errors import UsageError
from tenfold.nn.ffn import ExpertFFN


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_a_token_s_result_is_the_weighted_sum_of_its_best_experts(top_k: int) -> None:
    torch.manual_seed(0)
    ffn, x = ExpertFFN(8, 12, experts=4, top_k=top_k), torch.randn(2, 5, 8)
    y = ffn(x)
    for token, result in zip(x.flatten(0, 1), y.flatten(0, 1)):
        chances = ffn.router(token).softmax(-1)
        best = chances.argsort(descending=True)[:top_k].tolist()
        assert torch.allclose(result, sum(chances[e] * ffn.experts[e](token) for e in best), atol=1e-6)


def test_tokens_do_not_compete() -> None:
    torch.manual_seed(0)
    ffn, x = ExpertFFN(8, 12, experts=4), torch.randn(1, 9, 8)
    changed = x.clone()
    changed[:, 6] = torch.randn(8)
    assert torch.allclose(ffn(x)[:, :6], ffn(changed)[:, :6], atol=1e-6)


def test_balance_is_one_when_all_are_used_alike_and_their_number_when_one_is() -> None:
    ffn = ExpertFFN(4, 4, experts=4)
    with torch.no_grad():
        ffn.router.weight.copy_(20 * torch.eye(4))
    ffn(torch.eye(4))
    assert ffn.balance is not None
    assert float(ffn.balance.detach()) == pytest.approx(1.0, abs=1e-4)
    ffn(torch.eye(4)[:1].repeat(4, 1))
    assert float(ffn.balance.detach()) == pytest.approx(4.0, abs=1e-4)


def test_the_router_learns_from_the_balance() -> None:
    ffn = ExpertFFN(4, 4, experts=4)
    ffn(torch.randn(16, 4))
    assert ffn.balance is not None
    ffn.balance.backward()
    assert ffn.router.weight.grad is not None
    assert ffn.router.weight.grad.abs().sum() > 0


def test_more_choices_than_experts_are_refused() -> None:
    with pytest.raises(UsageError, match="1 to 3"):
        ExpertFFN(4, 4, experts=3, top_k=4)

"""One answer, however attention is computed: grouped, in two parts, by the plain or the fused kernel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.errors import UsageError
from tenfold.nn import attention
from tenfold.nn.attention import Attention, AttentionConfig, attend, attend_lse, causal_mask, merge_attention


def heads(h: int, n: int, d: int = 8, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, h, n, d, dtype=torch.float64)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_queries_equal_repeated_keys(groups: int) -> None:
    q, k, v = heads(4, 6), heads(groups, 9), heads(groups, 9)
    repeated = attend(q, k.repeat_interleave(4 // groups, 1), v.repeat_interleave(4 // groups, 1))
    assert torch.allclose(attend(q, k, v), repeated)
    assert torch.allclose(attend_lse(q, k, v)[0], repeated, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9), st.booleans())
def test_merging_attention_over_two_parts_gives_attention_over_all(cut: int, masked: bool) -> None:
    torch.manual_seed(cut)
    q, k, v = heads(4, 5), heads(2, 9), heads(2, 9)
    mask = torch.rand(5, 9) < 0.6 if masked else torch.ones(5, 9, dtype=torch.bool)
    mask[:, 0] = True
    first = attend_lse(q, k[:, :, :cut], v[:, :, :cut], mask[:, :cut])
    second = attend_lse(q, k[:, :, cut:], v[:, :, cut:], mask[:, cut:])
    assert torch.allclose(merge_attention(first, second), attend(q, k, v, mask), atol=1e-5)


def test_a_query_that_sees_nothing_gets_nothing() -> None:
    q, k, v = heads(2, 3), heads(2, 4), heads(2, 4)
    out, lse = attend_lse(q, k, v, torch.zeros(3, 4, dtype=torch.bool))
    assert out.count_nonzero() == 0
    assert torch.isneginf(lse).all()
    assert merge_attention((out, lse), (out, lse)).count_nonzero() == 0


@pytest.mark.parametrize("kind", ["full", "causal", "bool", "additive"])
@pytest.mark.parametrize("groups", [2, 4])
def test_plain_and_fused_kernels_agree_in_value_and_gradient(
    kind: str, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(limit: int) -> list[torch.Tensor]:
        monkeypatch.setattr(attention, "PLAIN_BELOW", limit)
        torch.manual_seed(0)
        q, k, v = (heads(h, 12).requires_grad_() for h in (4, groups, groups))
        mask = None
        if kind in ("bool", "additive"):
            mask = torch.rand(12, 12) < 0.7
            mask.fill_diagonal_(True)
            mask = mask if kind == "bool" else torch.where(mask, 0.0, -torch.inf).double()
        out = attend(q, k, v, mask, causal=kind == "causal")
        return [out, *torch.autograd.grad(out.sin().sum(), (q, k, v))]

    for plain, fused in zip(run(limit=100), run(limit=0), strict=True):
        assert torch.allclose(plain, fused, atol=1e-10)


def test_the_last_queries_of_a_causal_mask_see_all_earlier_keys() -> None:
    expected = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    assert torch.equal(causal_mask(2, 5, torch.device("cpu")), expected)


def test_a_masked_k_bias_has_no_effect_and_no_gradient() -> None:
    torch.manual_seed(0)
    layer = Attention(AttentionConfig(16, 2, mask_k_bias=True))
    x = torch.randn(1, 5, 16)
    torch.nn.init.normal_(layer.qkv.bias)
    before = layer(x)
    before.sum().backward()
    assert layer.qkv.bias.grad is not None
    assert layer.qkv.bias.grad[16:32].count_nonzero() == 0
    with torch.no_grad():
        layer.qkv.bias[16:32] += 7
    assert torch.equal(layer(x), before)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UsageError, match="dim = 10"):
        AttentionConfig(10, 4)
    with pytest.raises(UsageError, match="kv_heads = 3"):
        AttentionConfig(16, 4, kv_heads=3)

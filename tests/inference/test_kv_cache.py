"""The KV cache: a text in pieces attends as the whole text does, and tokens that were rejected are forgotten."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.inference.kv_cache import Cache, LayerCache
from tenfold.nn.attention import Attention, AttentionConfig, attend
from tenfold.nn.rope import TextRope


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.sampled_from([1, 2, 4]))
def test_cached_attention_equals_the_whole_text_at_once(pieces: list[int], groups: int) -> None:
    torch.manual_seed(0)
    layer = Attention(AttentionConfig(32, 4, kv_heads=groups, causal=True)).double()
    rope = TextRope(8)
    x = torch.randn(2, sum(pieces), 32, dtype=torch.float64)
    whole = layer(x, rope(torch.arange(x.shape[1])))
    cache = LayerCache(2, groups, 3, 8, torch.float64, torch.device("cpu"))
    parts = []
    with torch.no_grad():
        for part in x.split(pieces, dim=1):
            positions = torch.arange(cache.length, cache.length + part.shape[1])
            parts.append(layer(part, rope(positions), cache=cache))
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-6)


def test_a_truncated_cache_forgets_the_rejected_tokens() -> None:
    cache = Cache(2, batch=1, heads=2, head_dim=4, capacity=2)
    first, second = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4)
    for layer in cache.layers:
        layer.append(first, first)
        layer.append(second, second)
    assert cache.length == 8
    cache.truncate(3)
    keys, values = cache.layers[1].append(second[:, :, :1], first[:, :, :1])
    assert torch.equal(keys, torch.cat([first, second[:, :, :1]], 2))
    assert torch.equal(values, torch.cat([first, first[:, :, :1]], 2))


def test_keeping_a_path_of_a_tree_moves_its_rows_up_and_drops_the_others() -> None:
    cache = Cache(2, batch=1, heads=2, head_dim=4, capacity=9)
    held = [torch.randn(1, 2, 7, 4) for _ in range(2)]
    for layer, rows in zip(cache.layers, held):
        layer.append(rows, -rows)
    cache.keep(2, torch.tensor([0, 3, 4]))
    assert cache.length == 5
    for layer, rows in zip(cache.layers, held):
        keys, values = layer.append(rows[:, :, :0], rows[:, :, :0])
        assert keys.equal(rows[:, :, [0, 1, 2, 5, 6]])
        assert values.equal(-keys)


def test_growing_past_the_capacity_keeps_every_token() -> None:
    layer = LayerCache(2, 3, 1, 4, torch.float32, torch.device("cpu"))
    parts = [torch.randn(2, 3, n, 4) for n in (1, 1, 5, 2, 30)]
    for number, part in enumerate(parts, 1):
        keys, values = layer.append(part, 2 * part)
        assert keys.equal(torch.cat(parts[:number], 2))
        assert values.equal(2 * keys)
    assert layer.length == 39


def test_a_mask_covers_the_new_tokens_and_all_earlier_ones_are_seen() -> None:
    layer = LayerCache(1, 2, 8, 4, torch.float32, torch.device("cpu"))
    k, v = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4)
    layer.append(k[:, :, :4], v[:, :, :4])
    q, mask = torch.randn(1, 4, 2, 4), torch.tensor([[True, False], [False, True]])
    out = layer.attend(q, k[:, :, 4:], v[:, :, 4:], mask)
    whole = torch.cat([torch.ones(2, 4, dtype=torch.bool), mask], dim=1)
    assert torch.allclose(out, attend(q, k, v, whole), atol=1e-6)


def test_more_tokens_than_are_held_cannot_be_kept() -> None:
    cache = Cache(1, batch=1, heads=1, head_dim=2)
    cache.layers[0].append(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2))
    with pytest.raises(AssertionError, match="cannot keep 4 of 3 tokens"):
        cache.truncate(4)

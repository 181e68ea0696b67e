"""Pages are named by the text up to their end, the least recently used go first, and reused rows are those of a fresh pass."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from language.engine_models import tiny_llama
from tenfold.language.decoding.prefix_cache import PrefixCache, page_ids
from tenfold.language.decoding.request import Request
from tenfold.language.decoding.runner import Runner
from tenfold.language.sampling.sampling import SamplingParams

TOKENS = st.lists(st.integers(0, 9), max_size=20)


@settings(max_examples=80, deadline=None)
@given(TOKENS, TOKENS, st.integers(1, 5))
def test_two_texts_share_the_names_of_the_pages_that_they_begin_with(
    one: list[int], other: list[int], size: int
) -> None:
    first, second = page_ids(one, size), page_ids(other, size)
    assert len(first) == -(-len(one) // size)
    for i, (a, b) in enumerate(zip(first, second)):
        assert (a == b) == (one[: (i + 1) * size] == other[: (i + 1) * size])


def started(runner: Runner, prompt: list[int]) -> Request:
    request = Request(str(prompt), prompt, SamplingParams(max_tokens=4), seed=0, tokenizer=None, stops=frozenset())
    runner.start(request)
    assert request.table is not None
    assert runner.pages.cover(request.table, len(prompt) + 4)
    return request


def computed(runner: Runner, prompt: list[int]) -> Request:
    request = started(runner, prompt)
    runner.prefill([(request, len(prompt) - 1)])
    return request


def rows(runner: Runner, request: Request) -> tuple[torch.Tensor, torch.Tensor]:
    assert request.table is not None
    return runner.cache.load(request.table.slots(0, request.rows))


def test_reused_rows_are_those_of_a_fresh_pass_and_end_with_the_common_pages() -> None:
    runner = Runner(tiny_llama(), None, 40, 4)
    cache = PrefixCache(runner, 100)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    cache.add(computed(runner, prompt))
    assert len(cache) == 2  # the last page is not whole
    again = started(runner, [*prompt[:8], 7, 7])
    assert cache.reuse(again) == again.rows == 8
    for reused, fresh in zip(rows(runner, again), rows(runner, computed(runner, prompt[:9]))):
        assert torch.equal(reused, fresh)
    assert cache.reuse(started(runner, [0, *prompt])) == 0


def test_the_least_recently_used_page_goes_first() -> None:
    runner = Runner(tiny_llama(), None, 60, 4)
    cache = PrefixCache(runner, 2 * 4)
    first, second, third = ([token] * 5 for token in (1, 2, 3))
    for prompt in (first, second):
        cache.add(computed(runner, prompt))
    assert cache.reuse(started(runner, first)) == 4  # the first is used again: the second is now the oldest
    cache.add(computed(runner, third))
    assert len(cache) == 2
    assert [cache.reuse(started(runner, prompt)) for prompt in (first, second, third)] == [4, 0, 4]


@pytest.mark.parametrize("capacity", [0, 3])
def test_a_capacity_below_a_page_keeps_nothing(capacity: int) -> None:
    runner = Runner(tiny_llama(), None, 40, 4)
    cache = PrefixCache(runner, capacity)
    request = computed(runner, [1, 2, 3, 4, 5, 6])
    cache.add(request)
    assert len(cache) == 0
    assert [len(page.target[0][0, 0]) for page in cache.export(request).values()] == [
        4,
        1,
    ]  # other processes still get all

"""The draft vocabulary has the most expected ids and those that it must have; its coverage never falls as it grows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from language.drafting_models import tiny_rollouts, tiny_target
from tenfold.errors import UsageError
from tenfold.language.distillation.draft_vocabulary import choose, count_tokens, coverage, expected_counts


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=3, max_size=12), st.data())
def test_a_larger_vocabulary_covers_no_less_and_ids_ascend(counts: list[int], data: st.DataObject) -> None:
    table = torch.tensor(counts)
    always = (data.draw(st.integers(0, len(counts) - 1)),)
    shares = []
    for size in range(1, len(counts) + 1):
        ids = choose(table, size, always)
        assert len(ids) == size
        assert ids.tolist() == sorted(set(ids.tolist()))
        assert set(always) <= set(ids.tolist())
        shares.append(coverage(ids, table))
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(min(1, sum(counts)))


def test_a_size_that_cannot_be_says_what_is_allowed() -> None:
    for size in (1, 4):
        with pytest.raises(UsageError, match="allowed is 2 to 3"):
            choose(torch.ones(3), size, always=(0, 1))


def test_tokens_of_prompts_are_not_counted() -> None:
    rollouts = tiny_rollouts(tiny_target(), 3)
    counts = count_tokens(rollouts, 96)
    plain = [int(token) for rollout in rollouts for token in rollout.tokens[rollout.prompt :]]
    assert counts.tolist() == [plain.count(token) for token in range(96)]


def test_draft_vocabulary_takes_the_most_expected_ids_and_those_it_must() -> None:
    counts = torch.tensor([0.0, 5.0, 1.0, 9.0, 1.0, 0.0])
    ids = choose(counts, 3, always=(5,))
    assert ids.tolist() == [1, 3, 5]
    assert coverage(ids, counts) == 14 / 16
    target = tiny_target()
    rollouts = tiny_rollouts(target, 2)
    counts = expected_counts(rollouts, target.embedding.weight)
    assert counts.sum().item() == pytest.approx(sum(a.length for a in rollouts), rel=1e-4)

"""A request's text ends at a stop text wherever tokens break it, at an end token, or at its length; its cost is counted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_files import bytes_tokenizer
from tenfold.language.decoding.request import Delta, Request, Stats
from tenfold.language.models.tokenizer import Tokenizer
from tenfold.language.sampling.sampling import SamplingParams

TOKENIZER = bytes_tokenizer()


def request(tokenizer: Tokenizer | None = TOKENIZER, stops: frozenset[int] = frozenset(), **params: object) -> Request:
    made = SamplingParams(**params)  # type: ignore[arg-type]
    return Request("a", [1, 2, 3], made, seed=0, tokenizer=tokenizer, stops=stops)


@settings(max_examples=60, deadline=None)
@given(
    st.text("abc", min_size=1, max_size=20),
    st.lists(st.text("abc", min_size=1, max_size=3), max_size=3),
    st.integers(1, 5),
)
def test_the_text_is_what_stands_before_the_first_stop_text_in_any_groups(
    text: str, stop: list[str], group: int
) -> None:
    ids = [TOKENIZER.encode(letter)[0] for letter in text]
    own = request(stop=tuple(stop), max_tokens=len(ids))
    found, last = "", None
    for at in range(0, len(ids), group):
        last = own.take(ids[at : at + group], [])
        found += last.text
        if last.finish_reason:
            break
    # The text ends as soon as any stop text is complete, before the earliest that is complete then.
    end = next((n for n in range(len(text) + 1) if any(text[:n].endswith(s) for s in stop)), None)
    expected = text if end is None else text[: min(text[:end].find(s) for s in stop if s in text[:end])]
    assert found == expected
    assert last is not None
    assert last.finish_reason == ("length" if end is None else "stop")
    assert own.tokens[3:] == ids[: len(ids) if end is None else end]


def test_an_end_token_ends_the_answer_unless_it_is_ignored() -> None:
    one = request(None, frozenset({7}), max_tokens=9)
    assert one.take([5, 7, 6], []) == Delta("a", "", [5, 7], "stop", [], one.stats)
    other = request(None, frozenset({7}), max_tokens=9, ignore_eos=True)
    assert other.take([5, 7, 6], []).finish_reason is None
    assert other.left == 6


def test_no_more_than_max_tokens_are_taken() -> None:
    own = request(None, max_tokens=4)
    assert own.take([5, 5, 5], []).finish_reason is None
    last = own.take([6, 6, 6], [])
    assert (last.token_ids, last.finish_reason) == ([6], "length")
    assert own.stats.tokens == 4


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=12))
def test_accepted_tokens_are_counted_by_depth(passes: list[tuple[int, int]]) -> None:
    stats = Stats()
    for accepted, drafted in passes:
        stats.count(accepted, drafted, 4)
        stats.tokens += accepted + 1
    assert stats.accepted == [sum(accepted > depth for accepted, _ in passes) for depth in range(4)]
    assert stats.drafted == sum(drafted for _, drafted in passes)
    assert stats.tokens_per_call == pytest.approx(1 + sum(stats.accepted) / len(passes))


def test_speed_counts_the_tokens_behind_the_first() -> None:
    assert Stats(tokens=5, first_token=10.0).tokens_per_second == 0
    assert Stats(tokens=5, first_token=10.0, finished=12.0).tokens_per_second == 2
    assert Stats().tokens_per_call == 0

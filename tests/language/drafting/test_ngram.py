"""Prompt lookup finds what a slow search finds, and starts again where a text is preempted."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from language.drafting_models import Coins
from tenfold.inference.pages import PageTable
from tenfold.language.drafting.ngram import NgramDrafter, Places, chain_nodes
from tenfold.language.drafting.protocol import Drafter, DraftState
from tenfold.language.drafting.tree import Tree


def searched(tokens: list[int], count: int, longest: int = 3) -> list[int]:
    """By trying every place, latest first."""
    for n in range(min(longest, len(tokens)), 0, -1):
        for end in range(len(tokens) - 1, n - 1, -1):
            if tokens[end - n : end] == tokens[len(tokens) - n :]:
                return tokens[end : end + count]
    return []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.data())
def test_look_up_finds_the_latest_longest_match(tokens: list[int], data: st.DataObject) -> None:
    places = Places()
    cut = data.draw(st.integers(0, len(tokens) - 1))
    for end in range(cut, len(tokens) + 1):  # as a text grows, in steps of any size
        assert places.find(tokens[:end], 5) == searched(tokens[:end], 5)


def test_nodes_off_the_chain_stay_empty() -> None:
    tree = Tree.from_paths([[0], [1], [0, 0], [0, 0, 0], [1, 0]])
    assert chain_nodes(tree) == [1, 3, 5]
    drafter = NgramDrafter()
    assert isinstance(drafter, Drafter)
    states = [DraftState([1, 2, 3, 9, 1, 2], PageTable(4)), DraftState([5, 6, 7], PageTable(4))]
    draft = drafter.draft(states, tree, "top_k", torch.zeros(2), Coins(2))
    assert draft.tokens.tolist() == [[3, -1, 9, -1, 1], [-1, -1, -1, -1, -1]]


def test_preemption_starts_the_search_anew() -> None:
    drafter, state = NgramDrafter(), DraftState([1, 2, 1], PageTable(4))
    assert drafter.look_up(state, 2) == [2, 1]
    state.tokens = [4, 4]
    assert drafter.look_up(state, 2) == [4]

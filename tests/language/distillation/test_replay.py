"""The replay of acceptance equals drafting by hand along the text, and its walk counts every token once."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from language.drafting_models import tiny_drafter, tiny_rollouts, tiny_target
from tenfold.language.distillation.replay import NEVER, accepted_lengths, token_ranks, tokens_per_call, walk
from tenfold.language.drafting.tree import Tree


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0, 1, 2, NEVER]), min_size=3, max_size=3), min_size=1, max_size=6))
def test_a_chain_accepts_as_long_as_the_drafter_s_best_token_is_the_text_s(ranks: list[list[int]]) -> None:
    table = torch.tensor(ranks)
    expected = [next((k for k, rank in enumerate(row) if rank != 0), 3) for row in ranks]
    assert accepted_lengths(Tree.chain(3), table).tolist() == expected
    wide = Tree.from_paths([[0], [1], [0, 0], [0, 0, 0]])
    assert bool((accepted_lengths(wide, table) >= accepted_lengths(Tree.chain(3), table)).all())


def test_a_token_outside_the_draft_vocabulary_is_never_drafted() -> None:
    target = tiny_target()
    drafter = tiny_drafter(target)
    rollouts = tiny_rollouts(target, 3)
    known = set(drafter.ids.tolist())
    for rollout, table in zip(rollouts, token_ranks(drafter, target.embedding, rollouts, depth=2), strict=True):
        assert len(table) == rollout.length + 1
        text = rollout.tokens[rollout.prompt :].tolist()
        for start, token in enumerate(text):
            assert (int(table[start, 0]) == NEVER) == (token not in known)


def test_replay_equals_walking_by_hand() -> None:
    """Drafting with the network step by step along the answer accepts what the ranks say."""
    target = tiny_target()
    drafter = tiny_drafter(target, draft_vocabulary=96)
    answers = tiny_rollouts(target, 4, length=14)
    ranks = token_ranks(drafter, target.embedding, answers, depth=3)
    tree = Tree.from_paths([[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0]])
    for answer, table in zip(answers, ranks):
        lengths = accepted_lengths(tree, table)
        for s in range(answer.length):
            text = answer.tokens[: answer.prompt + s]
            node, length, hidden = 0, 0, drafter.fuse(answer.features[None, : len(text) - 1, :96])
            rest = answer.tokens[len(text) :].tolist()
            while True:
                n = len(text) - 1 + length
                embeds = target.embedding(answer.tokens[None, 1 : n + 1])
                with torch.no_grad():
                    feed, logits = drafter.step(embeds, hidden, torch.arange(n))
                hidden = torch.cat([hidden, feed[:, -1:]], 1)
                children = [c for c in tree.children[node].tolist() if c >= 0]
                guesses = logits[0, -1].topk(max(1, len(children))).indices.tolist()[: len(children)]
                if length >= len(rest) or rest[length] not in guesses:
                    break
                node, length = children[guesses.index(rest[length])], length + 1
            assert length == int(lengths[s]), (s, length)


def test_walk_counts_every_token_once() -> None:
    assert walk(torch.tensor([2, 9, 9, 0, 1, 0, 0])) == (6, 3)
    assert walk(torch.zeros(1, dtype=torch.int64)) == (0, 0)
    assert tokens_per_call([torch.tensor([0, 0, 0]), torch.tensor([1, 0, 0, 0])]) == 5 / 4

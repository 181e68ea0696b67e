"""Trees drafted in batches equal each branch drafted alone, and siblings follow the distribution that they claim."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from language.drafting_models import Coins, features_of, opened, tiny_drafter, tiny_target
from tenfold.language.drafting.protocol import Draft, Drafter
from tenfold.language.drafting.tree import Tree
from tenfold.language.drafting.tree_drafter import TreeDrafter
from tenfold.language.models.llama import Llama

TREE = Tree.from_paths([[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0, 0]])
VARIANTS = [
    {},
    {"layers": 2},
    {"norm_output": True, "sliding_window": 6},
    {"method": "eagle1"},
    {"draft_vocabulary": 96},
]


@torch.no_grad()
def distribution_alone(drafter: TreeDrafter, target: Llama, text: list[int], branch: list[int]) -> Tensor:
    """Logits behind text + branch, by running every row of the text and of this branch anew, each behind the others."""
    network, window = drafter.network, drafter.network.config.sliding_window
    whole = [*text, *branch]
    hidden = network.fuse(features_of(drafter, target, text))[: len(text) - 1]
    for row in range(len(text) - 2, len(whole) - 1):
        n = row + 1
        embeds = target.embedding(torch.tensor([whole[1 : n + 1]]))
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        if window is not None:
            mask &= torch.ones(n, n, dtype=torch.bool).triu(1 - window)
        state = network.advance(embeds, hidden[None, :n], torch.arange(n), None, mask)
        hidden = torch.cat([hidden[:n], network.feed(state)[0, -1:]])
    return network.logits(state)[0, -1]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_node_is_the_one_that_its_branch_alone_would_give(variant: dict) -> None:
    target = tiny_target()
    network = tiny_drafter(target, **variant)
    texts = [torch.randint(96, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (7, 12, 9)]
    drafter, states = opened(network, target, texts)
    assert isinstance(drafter, Drafter)
    for _ in range(2):  # the second time after two more tokens, so that the first draft's rows must be gone
        draft = drafter.draft(states, TREE, "top_k", torch.zeros(3), Coins(3))
        assert draft.q is None
        for b, text in enumerate(texts):
            for node in TREE.inner.tolist():
                branch, at = [], node
                while at:
                    branch.insert(0, int(draft.tokens[b, at - 1]))
                    at = TREE.parents[at]
                logits = distribution_alone(drafter, target, text, branch)
                children = [c for c in TREE.children[node].tolist() if c >= 0]
                best = network.target_ids(logits.topk(len(children)).indices)
                assert draft.tokens[b, [c - 1 for c in children]].tolist() == best.tolist()
        for text, state in zip(texts, states):
            text += [5, 70 - len(text)]
            state.tokens[:] = text
        features = [features_of(drafter, target, text)[-3:-1] for text in texts]
        drafter.extend(states, [2, 2, 2], torch.tensor([i for t in texts for i in t[-2:]]), torch.cat(features))
        assert [state.rows for state in states] == [len(text) - 1 for text in texts]


def draws(rule: str, width: int, batch: int = 4000, temperature: float = 0.7) -> tuple[Draft, Tensor]:
    target = tiny_target()
    drafter, states = opened(tiny_drafter(target), target, [[3, 14, 15, 92]])
    tree = Tree.from_paths([[i] for i in range(width)])
    draft = drafter.draft(states * batch, tree, rule, torch.full((batch,), temperature), Coins(batch))  # pyright: ignore
    distribution = distribution_alone(drafter, target, [3, 14, 15, 92], []).div(temperature).softmax(-1)
    return draft, distribution


@pytest.mark.parametrize("rule", ["independent", "without_replacement"])
def test_siblings_follow_their_law(rule: str) -> None:
    draft, distribution = draws(rule, 3)
    assert draft.q is not None
    assert draft.ids is not None
    assert draft.point is None
    torch.testing.assert_close(draft.q[0, 0], distribution, atol=1e-6, rtol=1e-5)
    where = torch.full((96,), -1)
    where[draft.ids] = torch.arange(len(draft.ids))
    first = torch.bincount(where[draft.tokens[:, 0]], minlength=len(distribution)) / len(draft.tokens)
    assert (first - distribution).abs().sum() / 2 < 0.05
    if rule == "independent":
        third = torch.bincount(where[draft.tokens[:, 2]], minlength=len(distribution)) / len(draft.tokens)
        assert (third - distribution).abs().sum() / 2 < 0.05
    else:
        assert all(len(set(row)) == 3 for row in draft.tokens.tolist())
        # The second draw is from q without the first: sum over first x of q(x) q(y) / (1 - q(x)).
        second = torch.stack(
            [
                (distribution[x] * distribution / (1 - distribution[x])).index_fill(0, torch.tensor(x), 0.0)
                for x in range(len(distribution))
            ]
        )
        seen = torch.bincount(where[draft.tokens[:, 1]], minlength=len(distribution)) / len(draft.tokens)
        assert (seen - second.sum(0)).abs().sum() / 2 < 0.05


def test_slots_without_mass_stay_empty_and_so_does_what_stands_behind_them() -> None:
    target = tiny_target()
    network = tiny_drafter(target)
    drafter, states = opened(network, target, [[3, 14, 15, 92]])
    with torch.no_grad():
        states[0].carry[1][2:] = -torch.inf  # two tokens are left
    tree = Tree.from_paths([[0], [1], [2], [2, 0]])
    draft = drafter.draft(states, tree, "without_replacement", torch.ones(1), Coins(1))
    assert set(draft.tokens[0, :2].tolist()) == set(network.ids[:2].tolist())
    assert draft.tokens[0, 2:].tolist() == [-1, -1]


def test_greedy_requests_of_a_sampled_batch_are_point_masses() -> None:
    target = tiny_target()
    drafter, states = opened(tiny_drafter(target), target, [[3, 14, 15, 92], [1, 2, 3, 4, 5]])
    alone = drafter.draft(states, TREE, "top_k", torch.zeros(2), Coins(2))
    mixed = drafter.draft(states, TREE, "without_replacement", torch.tensor([0.0, 1.0]), Coins(2))
    assert mixed.point is not None
    assert mixed.point[0].all()
    assert not mixed.point[1].any()
    assert mixed.tokens[0].tolist() == alone.tokens[0].tolist()

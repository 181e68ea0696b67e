"""A hybrid tree holds the drafter's proposal and the looked-up chain side by side, and a fitted one follows the text."""

from __future__ import annotations

from pathlib import Path

import torch

from language.drafting_models import Coins, opened, tiny_drafter, tiny_target
from language.engine_models import NoisyTarget, tiny_llama
from tenfold.inference.pages import PageTable
from tenfold.language.drafting.hybrid_trees import FittedTree, HybridTree
from tenfold.language.drafting.ngram import HybridDrafter, NgramDrafter
from tenfold.language.drafting.protocol import Draft, Drafter, DraftState
from tenfold.language.drafting.rejection import verify_greedy
from tenfold.language.drafting.tree import Tree


def test_a_hybrid_tree_holds_both_proposals_unchanged() -> None:
    target = tiny_target()
    texts = [[1, 2, 3, 9, 1, 2], [5, 6, 7, 8, 80]]
    own = Tree.from_paths([[0], [1], [0, 0], [0, 1], [1, 0]])
    drafter, states = opened(tiny_drafter(target), target, texts)
    alone = {rule: drafter.draft(states, own, rule, torch.full((2,), heat), Coins(2, 7)) for rule, heat in
             (("top_k", 0.0), ("without_replacement", 1.0))}  # fmt: skip
    both = HybridDrafter(drafter, NgramDrafter())
    hybrid = HybridTree.of(own, 3)
    tree = hybrid.tree
    assert isinstance(both, Drafter)
    assert tree.nodes == 8
    assert [tree.parents[c] for c in hybrid.chain] == [0, *hybrid.chain[:-1]]
    for state in states:
        state.carry = [state.carry, None]
    for rule, heat in (("top_k", 0.0), ("without_replacement", 1.0)):
        draft, stood_in = hybrid.propose(both, states, rule, torch.full((2,), heat), Coins(2, 7))
        assert stood_in == tree
        own_nodes, chain = [n - 1 for n in hybrid.drafted], [n - 1 for n in hybrid.chain]
        assert torch.equal(draft.tokens[:, own_nodes], alone[rule].tokens)
        assert draft.tokens[:, chain].tolist() == [[3, 9, 1], [-1, -1, -1]]
        if rule == "without_replacement":
            assert draft.q is not None
            assert draft.point is not None
            assert alone[rule].q is not None
            rows = [int(tree.inner_row[hybrid.drafted[n - 1] if n else 0]) for n in own.inner.tolist()]
            assert torch.equal(draft.q[:, rows], alone[rule].q)
            assert draft.point[:, chain].all()
            assert not draft.point[:, own_nodes].any()


def test_hybrid_rows_grow_as_the_drafters_own(tmp_path: Path) -> None:
    target = tiny_target()
    drafter, states = opened(tiny_drafter(target), target, [[1, 2, 3, 9, 1, 2]])
    both = HybridDrafter(drafter, NgramDrafter())
    states[0].carry = [states[0].carry, None]
    states[0].tokens += [3]
    both.extend(states, [1], torch.tensor([3]), torch.randn(1, 96))
    assert states[0].rows == 6
    assert isinstance(states[0].carry[0], tuple)
    draft, _ = HybridTree.of(Tree.chain(2), 2).propose(both, states, "top_k", torch.zeros(1), Coins(1))
    assert draft.tokens[0, -1] >= 0
    assert (draft.tokens >= 0).all()


def test_the_longer_of_two_equal_proposals_counts() -> None:
    """The chain's first token is also the drafter's best: what follows in the chain must still be reached."""
    hybrid = HybridTree.of(Tree.from_paths([[0], [1], [0, 0]]), 3)
    nodes = [*(n - 1 for n in hybrid.drafted), *(n - 1 for n in hybrid.chain)]
    tokens = torch.full((1, 6), -1)
    tokens[0, nodes] = torch.tensor([7, 8, 5, 7, 6, 4])
    logits = torch.zeros(1, 7, 10)
    logits[0, 0, 7] = logits[0, hybrid.drafted[0], 6] = logits[0, hybrid.chain[0], 6] = logits[
        0, hybrid.chain[1], 9
    ] = 1.0
    accepted = verify_greedy(logits, Draft(tokens), hybrid.tree)
    assert accepted.length.tolist() == [2]
    assert accepted.bonus.tolist() == [9]
    assert accepted.path.tolist() == [[0, hybrid.chain[0], hybrid.chain[1], -1]]


def test_a_single_text_gets_the_shape_that_fits_it() -> None:
    """A chain where the text had its last two tokens before, the drafter's own tree where not; several requests share one."""
    own = Tree.from_paths([[0], [1], [0, 0]])
    fitted = FittedTree(HybridTree.of(Tree.chain(1), 3), HybridTree.of(Tree.chain(1), 2), own)
    both = HybridDrafter(NoisyTarget(tiny_llama(), 0.1), NgramDrafter())
    known, new = (DraftState(list(text), PageTable(4)) for text in ([1, 2, 3, 1, 2], [1, 2, 3, 4, 2]))
    assert fitted.fit(both, [known]) == fitted.known
    assert fitted.fit(both, [new]) == own
    assert fitted.fit(both, [known, new]) == fitted.tree

"""A batch of draft trees answers for every request what that request's tree answers."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.language.drafting.protocol import Draft
from tenfold.language.drafting.rejection import verify_greedy, verify_sampled
from tenfold.language.drafting.tree import Tree
from tenfold.language.drafting.tree_batch import TreeBatch
from tenfold.language.sampling.sampling import SamplingParams, SamplingTensors

TREES = [
    Tree.from_paths([[0], [1], [0, 0], [0, 1], [1, 0], [0, 0, 0]]),
    Tree.from_paths([[0], [1], [2], [1, 0], [1, 1], [1, 0, 0]]),
]


@st.composite
def parents(draw: st.DrawFn, nodes: int = 7) -> list[int]:
    found = [0]
    for i in range(1, nodes):
        found.append(draw(st.integers(found[-1], i - 1)))
    return found


@settings(max_examples=30, deadline=None)
@given(st.lists(parents(), min_size=1, max_size=3))
def test_every_table_is_that_of_the_trees_alone(rows: list[list[int]]) -> None:
    trees = [Tree(tuple(row)) for row in rows]
    height = max(tree.height for tree in trees)
    batch = TreeBatch(torch.tensor(rows), height)
    assert batch.nodes == 6
    for b, tree in enumerate(trees):
        assert batch.one(b) == tree
        assert torch.equal(batch.mask_of(b), tree.mask)
        assert batch.depth[b].tolist() == tree.depth.tolist()
        wide = tree.children.shape[1]
        assert torch.equal(batch.children[b, :, :wide], tree.children)
        assert bool((batch.children[b, :, wide:] == -1).all())
    for node in range(7):
        path = batch.path_to(torch.full((len(trees),), node))
        for b, tree in enumerate(trees):
            own = [n for n in range(7) if tree.mask[node, n]]
            assert path[b].tolist() == own + [-1] * (height + 1 - len(own))


def test_requests_without_a_tree_get_nodes_that_nothing_hits() -> None:
    batch = TreeBatch(torch.tensor([tree.parents for tree in TREES]), 3)
    spread = batch.spread([2, 0], 3)
    assert [spread.one(2), spread.one(0)] == TREES
    assert bool((spread.parents[1] == 0).all())
    hit = torch.zeros(3, 7, dtype=torch.bool)
    hit[:, 0] = True
    assert spread.deepest(hit).tolist() == [0, 0, 0]


def test_a_batch_of_trees_is_checked_like_each_tree_alone() -> None:
    torch.manual_seed(0)
    batch = TreeBatch(torch.tensor([tree.parents for tree in TREES]), 3)
    for _ in range(40):
        logits = torch.randn(2, 7, 5) * 2
        draft = Draft(torch.randint(-1, 5, (2, 6)))
        laws = SamplingTensors.of([SamplingParams(temperature=0.8), SamplingParams(temperature=1.3, top_k=3)])
        numbers = torch.rand(2, 4, batch.siblings + 1, dtype=torch.float64)
        together = verify_sampled(logits, laws, draft, batch, numbers, "top_k"), verify_greedy(logits, draft, batch)
        for b, tree in enumerate(TREES):
            one, own = (
                Draft(draft.tokens[b : b + 1]),
                SamplingTensors.of([[SamplingParams(temperature=0.8)], [SamplingParams(temperature=1.3, top_k=3)]][b]),
            )
            alone = (
                verify_sampled(logits[b : b + 1], own, one, tree, numbers[b : b + 1], "top_k"),
                verify_greedy(logits[b : b + 1], one, tree),
            )
            for mine, theirs in zip(together, alone):
                assert int(mine.length[b]) == int(theirs.length[0])
                assert int(mine.bonus[b]) == int(theirs.bonus[0])
                taken = int(mine.length[b]) + 1
                assert mine.path[b, :taken].tolist() == theirs.path[0, :taken].tolist()

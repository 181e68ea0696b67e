"""Dynamic trees are the best candidates of the beams, and checking them leaves the distribution and the greedy text alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from language.drafting_models import tiny_drafter, tiny_target
from language.engine_models import finish
from tenfold.errors import UsageError
from tenfold.inference.pages import PageAllocator
from tenfold.language.decoding.engine import LLMEngine
from tenfold.language.drafting.dynamic import DynamicTree, draft_dynamic
from tenfold.language.drafting.ngram import NgramDrafter
from tenfold.language.drafting.protocol import DraftState
from tenfold.language.drafting.speculation import Speculation
from tenfold.language.drafting.tree import Tree
from tenfold.language.drafting.tree_drafter import TreeDrafter
from tenfold.language.sampling.sampling import SamplingParams

SHAPE = DynamicTree(top_k=3, depth=2, total=9)
TREES = [
    Tree.from_paths([[0], [1], [0, 0], [0, 1], [1, 0], [0, 0, 0]]),
    Tree.from_paths([[0], [1], [2], [1, 0], [1, 1], [1, 0, 0]]),
]


def drafted(batch: int) -> tuple[TreeDrafter, list[DraftState]]:
    """A drafter with random texts of different lengths behind it."""
    target = tiny_target()
    drafter = TreeDrafter(tiny_drafter(target), target)
    pages = PageAllocator(40, 4)
    drafter.open(40, 4)
    torch.manual_seed(4)
    states, counts = [], []
    for b in range(batch):
        table, count = pages.open(60), 5 + 3 * b
        assert pages.cover(table, count + SHAPE.nodes + 1)
        states.append(DraftState(torch.randint(96, (count + 1,)).tolist(), table))
        counts.append(count)
    tokens = torch.tensor([t for state in states for t in state.tokens[1:]])
    drafter.extend(states, counts, tokens, torch.randn(sum(counts), 96))
    return drafter, states


def by_hand(drafter: TreeDrafter, state: DraftState) -> set[tuple[int, ...]]:
    """Paths of the tree by plain lists: every path is drafted anew as a chain, alone."""

    def distribution(path: tuple[int, ...]) -> Tensor:
        assert drafter.cache is not None
        hidden, logits = state.carry[0][None, None], state.carry[1][None, None]
        for level, token in enumerate(path):
            step = drafter.cache.step([state.table], [state.rows + level], [1])
            position = torch.tensor([[state.rows + level]])
            mask = torch.ones(1, level + 1, dtype=torch.bool)
            embeds = drafter.embed(torch.tensor([[token]]))
            feed, out = drafter.run(embeds, hidden, position, step, mask, torch.arange(1))
            hidden, logits = feed[None], out[None]
        return logits[0, 0].float().log_softmax(-1)

    candidates: list[tuple[float, tuple[int, ...]]] = []
    beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for _ in range(SHAPE.depth + 1):
        grown = []
        for score, path in beams:
            best = distribution(path).topk(SHAPE.top_k)
            ids = drafter.network.target_ids(best.indices)
            grown += [(score + float(v), (*path, int(i))) for v, i in zip(best.values, ids)]
        candidates += grown
        beams = sorted(grown, key=lambda c: -c[0])[: SHAPE.top_k]
    return {path for _, path in sorted(candidates, key=lambda c: -c[0])[: SHAPE.total - 1]}


@torch.inference_mode()
def test_the_best_candidates_of_the_beams_make_the_tree_and_rows_stay_as_they_were() -> None:
    drafter, states = drafted(3)
    assert drafter.cache is not None
    slots = [state.table.slots(0, state.rows) for state in states]
    before = [drafter.cache.load(s)[0] for s in slots]
    draft, trees = draft_dynamic(drafter, states, SHAPE)
    for b, state in enumerate(states):
        tree = trees.one(b)  # checks that the nodes stand level by level
        paths = set()
        for node in range(1, tree.nodes + 1):
            path = [n for n in tree.ancestors[node].tolist() if n > 0]
            paths.add(tuple(int(draft.tokens[b, n - 1]) for n in path))
        assert paths == by_hand(drafter, state)
        assert torch.equal(drafter.cache.load(slots[b])[0], before[b])
        assert torch.equal(trees.depth[b], tree.depth)
        assert torch.equal(trees.mask[b, 0], tree.mask)
        size = tree.children.shape[1]
        assert torch.equal(trees.children[b, :, :size], tree.children)
        assert bool((trees.children[b, :, size:] == -1).all())


@pytest.mark.parametrize("window", [None, 9])
def test_text_with_dynamic_trees_is_the_targets_own_alone_and_in_a_batch(window: int | None) -> None:
    target = tiny_target(context=200)
    torch.manual_seed(2)
    prompts = [torch.randint(96, (n,)).tolist() for n in (1, 5, 17)]
    asked = {str(i): (p, SamplingParams(max_tokens=24)) for i, p in enumerate(prompts)}
    expected = finish(LLMEngine(target, page_size=4), asked)

    def engine() -> LLMEngine:
        drafter = TreeDrafter(tiny_drafter(target, sliding_window=window), target)
        return LLMEngine(target, None, drafter, speculation=Speculation(tree=SHAPE), page_size=4)

    assert finish(engine(), asked) == expected
    for name, one in asked.items():
        assert finish(engine(), {name: one})[name] == expected[name]


def test_sampled_text_does_not_depend_on_the_batch() -> None:
    target = tiny_target(context=200)
    torch.manual_seed(3)
    asked = {
        str(i): (torch.randint(96, (n,)).tolist(), SamplingParams(temperature=1.0, seed=i, max_tokens=16))
        for i, n in enumerate((3, 8))
    }

    def write(some: dict) -> dict[str, list[int]]:
        drafter = TreeDrafter(tiny_drafter(target), target)
        return finish(LLMEngine(target, None, drafter, speculation=Speculation(tree="dynamic"), page_size=4), some)

    together = write(asked)
    for name, one in asked.items():
        assert write({name: one})[name] == together[name]


def test_prompt_lookup_has_no_confidence_to_grow_by() -> None:
    engine = LLMEngine(tiny_target(context=200), None, NgramDrafter(), page_size=4)
    with pytest.raises(UsageError, match="prompt lookup has none"):
        Speculation(tree="dynamic").plan(1, False, engine.runner.drafter)

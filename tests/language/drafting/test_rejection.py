"""Verification gives exactly the target's distribution, by measuring every decision's share of its uniform, not by sampling.

Each decision is a threshold on one uniform, so its probability is found by bisection through `verify_sampled` itself; summed
over all drafts that the drafter could have made, weighted by their probability, the emitted distribution must be p.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from language.sampling_reference import CUTS, PLAIN, reference
from tenfold.language.drafting.protocol import Draft, Rule
from tenfold.language.drafting.rejection import Accepted, verify_greedy, verify_sampled
from tenfold.language.drafting.tree import Tree
from tenfold.language.sampling.sampling import SamplingParams, SamplingTensors, allow

V = 5
TREE = Tree.from_paths([[0], [1], [2], [0, 0], [0, 1], [2, 0]])


def draws(rule: Rule, q: Tensor, count: int) -> list[tuple[tuple[int, ...], float]]:
    """All ways in which a drafter can fill `count` slots, with their probabilities."""
    if rule == "top_k":
        return [(tuple(q.argsort(descending=True)[:count].tolist()), 1.0)]
    ways = []
    for ids in itertools.product(range(V), repeat=count):
        if rule == "without_replacement" and len(set(ids)) < count:
            continue
        chance, rest = 1.0, q.clone()
        for i in ids:
            chance *= float(rest[i] / rest.sum())
            if rule == "without_replacement":
                rest[i] = 0
        ways.append((ids, chance))
    return ways


def emitted_distribution(
    node: int, logits: Tensor, params: SamplingParams, draft: Draft, rule: Rule, weights: Tensor
) -> tuple[Tensor, float]:
    """Law of the token after `node`, given that it was reached, over all rows of `draft`; and the weight that reached it."""
    rows, depth = len(draft.tokens), int(TREE.depth[node])
    children = [c for c in TREE.children[node].tolist() if c >= 0]
    cases = len(children) + V  # where each child is accepted; where the last draw gives a token up to each id
    start = torch.full((rows, TREE.height + 1, 4), 1 - 1e-15, dtype=torch.float64)
    for ancestor in (n for n in range(1, TREE.nodes + 1) if TREE.mask[node, n]):
        start[:, TREE.depth[ancestor] - 1, TREE.rank[ancestor]] = 0.0

    def run(u: Tensor) -> Accepted:
        times = len(u) // rows
        point = None if draft.point is None else draft.point.repeat(times, 1)
        many = Draft(draft.tokens.repeat(times, 1), draft.q.expand(rows, -1, -1).repeat(times, 1, 1), draft.ids, point)
        return verify_sampled(logits.expand(len(u), -1, -1), SamplingTensors.of([params] * len(u)), many, TREE, u, rule)

    reached = (run(start).path == node).any(-1) if node else torch.ones(rows, dtype=torch.bool)
    place = torch.tensor([*range(len(children)), *[3] * V]).repeat_interleave(rows)
    wanted = torch.tensor([*children, *range(V)]).repeat_interleave(rows)
    low, high = torch.zeros(cases * rows, dtype=torch.float64), torch.ones(cases * rows, dtype=torch.float64)
    for _ in range(24):
        middle, u = (low + high) / 2, start.repeat(cases, 1, 1)
        u[torch.arange(len(u)), depth, place] = middle
        found = run(u)
        yes = torch.where(place < 3, (found.path == wanted[:, None]).any(-1), found.bonus <= wanted)
        low, high = torch.where(yes, middle, low), torch.where(yes, high, middle)
    thresholds = ((low + high) / 2).view(cases, rows)
    distribution = torch.zeros(rows, V, dtype=torch.float64)
    left = torch.ones(rows, dtype=torch.float64)
    for child, threshold in zip(children, thresholds):
        guess = draft.tokens[:, child - 1]
        distribution.scatter_add_(
            1, guess.clamp_min(0)[:, None], torch.where(guess >= 0, left * threshold, 0.0)[:, None]
        )
        left = torch.where(guess >= 0, left * (1 - threshold), left)
    # Where every sibling is accepted whatever u is, nothing is left and the draw has no say.
    distribution += left[:, None] * thresholds[len(children) :].diff(dim=0, prepend=torch.zeros(1, rows)).t()
    weights = weights * reached
    return (distribution * weights[:, None]).sum(0) / weights.sum(), float(weights.sum())


def total_variation(
    rule: Rule,
    params: SamplingParams = PLAIN,
    verified_as: Rule | None = None,
    allowed: Tensor | None = None,
    looked_up: bool = False,
    drop_duplicates: bool = False,
) -> float:
    """The largest distance to the target's distribution over the root and the two inner nodes."""
    torch.manual_seed(3)
    logits = torch.randn(1, TREE.nodes + 1, V, dtype=torch.float64) * 1.5
    q = torch.randn(len(TREE.inner), V, dtype=torch.float64).softmax(-1)
    if allowed is not None:
        logits = allow(logits, allowed)
    worst = 0.0
    for node in TREE.inner.tolist():
        children = [c for c in TREE.children[node].tolist() if c >= 0]
        drawn = children[1:] if looked_up else children
        rows, weights = [], []
        for ids, chance in draws(rule, q[TREE.inner_row[node]], len(drawn)):
            tokens = torch.full((TREE.nodes,), -1)
            for n in range(1, TREE.nodes + 1):  # on the way to the node what the target likes best
                if TREE.mask[node, n]:
                    tokens[n - 1] = int(logits[0, TREE.parents[n]].argmax())
            if looked_up and children:
                tokens[children[0] - 1] = 1
            for child, i in zip(drawn, ids):
                tokens[child - 1] = i
            if drop_duplicates:
                for a, b in itertools.combinations(drawn, 2):
                    if tokens[a - 1] == tokens[b - 1]:
                        tokens[b - 1] = -1
            rows.append(tokens)
            weights.append(chance)
        table = torch.stack(rows)
        point = None
        if looked_up:
            point = torch.zeros(len(rows), TREE.nodes, dtype=torch.bool)
            point[:, children[0] - 1] = True
        draft = Draft(table, q.expand(len(rows), -1, -1), None, point)
        weight = torch.tensor(weights, dtype=torch.float64)
        distribution, reached = emitted_distribution(node, logits, params, draft, verified_as or rule, weight)
        expected = reference(logits[0, node], params, None if allowed is None else allowed[0, node])
        assert reached > 0.05
        worst = max(worst, float((distribution - expected).abs().sum() / 2))
    return worst


@pytest.mark.parametrize("rule", ["top_k", "independent", "without_replacement"])
@pytest.mark.parametrize("cut", CUTS)
def test_every_rule_gives_exactly_the_targets_law(rule: Rule, cut: str) -> None:
    assert total_variation(rule, CUTS[cut]) < 1e-6


@pytest.mark.parametrize("rule", ["top_k", "independent", "without_replacement"])
def test_the_law_is_that_of_constrained_sampling_under_a_grammar(rule: Rule) -> None:
    torch.manual_seed(1)
    allowed = torch.rand(1, TREE.nodes + 1, V) < 0.6
    allowed[..., 0] = True
    assert total_variation(rule, CUTS["all"], allowed=allowed) < 1e-6


@pytest.mark.parametrize("rule", ["top_k", "independent", "without_replacement"])
def test_a_looked_up_sibling_beside_drawn_ones_keeps_the_law(rule: Rule) -> None:
    assert total_variation(rule, looked_up=True) < 1e-6


def test_the_same_measurement_catches_the_wrong_rules() -> None:
    assert total_variation("top_k", verified_as="independent") > 0.1  # the best tokens taken for draws
    assert total_variation("independent", drop_duplicates=True) > 1e-3  # repeated draws thrown away
    assert (
        total_variation("without_replacement", verified_as="independent") > 1e-3
    )  # draws without replacement taken for independent ones


def test_a_draft_vocabulary_smaller_than_the_targets_keeps_the_law() -> None:
    torch.manual_seed(0)
    ids = torch.tensor([0, 2, 3])
    q = torch.randn(1, 3, 3, dtype=torch.float64).softmax(-1)
    logits = torch.randn(1, TREE.nodes + 1, V, dtype=torch.float64)
    rows, weights = [], []
    for a, b, c in itertools.permutations(range(3)):  # without replacement, all three slots of the root
        tokens = torch.full((TREE.nodes,), -1)
        tokens[:3] = ids[[a, b, c]]
        rows.append(tokens)
        weights.append(float(q[0, 0, a] * q[0, 0, b] / (1 - q[0, 0, a])))
    draft = Draft(torch.stack(rows), q.expand(6, -1, -1), ids)
    mass = torch.tensor(weights, dtype=torch.float64)
    distribution, _ = emitted_distribution(0, logits, PLAIN, draft, "without_replacement", mass)
    assert (distribution - reference(logits[0, 0], PLAIN)).abs().sum() / 2 < 1e-6


def test_greedy_follows_the_argmax_and_equals_sampling_at_temperature_zero() -> None:
    torch.manual_seed(0)
    for _ in range(30):
        logits, tokens = torch.randn(4, 7, V), torch.randint(-1, V, (4, 6))
        draft = Draft(tokens)
        greedy = verify_greedy(logits, draft, TREE)
        u = torch.rand(4, TREE.height + 1, 4, dtype=torch.float64)
        sampled = verify_sampled(logits, SamplingTensors.of([SamplingParams()] * 4), draft, TREE, u, "top_k")
        for b in range(4):
            node, path = 0, [0]
            while True:
                best = int(logits[b, node].argmax())
                hits = [c for c in TREE.children[node].tolist() if c >= 0 and tokens[b, c - 1] == best]
                if not hits:
                    break
                node = hits[0]
                path.append(node)
            for found in (greedy, sampled):
                assert found.path[b, : len(path)].tolist() == path
                assert (found.path[b, len(path) :] == -1).all()
                assert (int(found.length[b]), int(found.bonus[b])) == (len(path) - 1, best)

"""Replay of acceptance: how many draft tokens a drafter would have got accepted at temperature 0, from the target's text.

    ranks = token_ranks(drafter, target_embedding, rollouts, depth=6)
    calls = accepted_lengths(tree, ranks[0])                    what each start of a step would accept
    report = tokens_per_call(lengths)                           one walk through every rollout, as the engine does it

At temperature 0 speculative text *is* the target's own text. So on the accepted path the drafter sees that text and its
own hidden states, nothing else: running it along the text (distillation/unroll.py) and noting the rank that it gives the true
token at every level tells, for *every* tree of rank paths at once, how far each step gets. The walk then starts where the
last step ended, which is the closed loop of the engine, not a teacher-forced average over all positions.

    A rows   K levels
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from tenfold.language.distillation.rollouts import Rollout, collate
from tenfold.language.distillation.unroll import first_rows, unroll
from tenfold.language.drafting.drafter import EagleDrafter
from tenfold.language.drafting.tree import Tree

NEVER = 1 << 30  # the rank of a token that cannot be drafted


@torch.no_grad()
def token_ranks(
    drafter: EagleDrafter,
    embed: Callable[[Tensor], Tensor],
    rollouts: Sequence[Rollout],
    depth: int,
    batch: int = 8,
) -> list[Int[Tensor, "_ k"]]:
    """For every rollout and every place s where a step may start, the drafter's rank of rollout token s + k at level k, given
    that the ones before were accepted. The root of start 0 is the prompt's last token, that of start s rollout token s - 1."""
    result: list[Tensor] = []
    for start in range(0, len(rollouts), batch):
        part = rollouts[start : start + batch]
        data = collate(part)
        wide = drafter.config.features
        features = data["features"][..., :wide] if drafter.config.method == "eagle3" else data["features"][..., -wide:]
        first = first_rows(data["prompts"])
        count = max(rollout.length for rollout in part) + 1
        dtype = drafter.get_parameter("fc.weight").dtype
        states = unroll(drafter, embed, data["tokens"], features.to(dtype), first, count, depth)
        table = torch.full((len(part), count, depth), NEVER)
        for k, state in enumerate(states):
            for b, rollout in enumerate(part):
                row = int(first[b])
                true = rollout.tokens[row + 2 + k :].long()
                if len(true) > 0:
                    start = row + 2 - rollout.prompt
                    table[b, start : start + len(true), k] = _ranks(drafter, state[b, : len(true)], true)
        result += [table[b, : rollout.length + 1] for b, rollout in enumerate(part)]
    return result


def _ranks(drafter: EagleDrafter, state: Tensor, true: Tensor) -> Tensor:
    """Rank of every true token among the logits of its row; equal logits: the smaller id first, as topk of a tree does."""
    logits = drafter.logits(state).float()
    if drafter.config.reduced:
        place = torch.searchsorted(drafter.ids, true).clamp_max(len(drafter.ids) - 1)
        known = drafter.ids[place] == true
    else:
        place, known = true, torch.ones_like(true, dtype=torch.bool)
    mine = logits.gather(1, place[:, None])
    ranks = (logits > mine).sum(-1)
    return torch.where(known, ranks, NEVER)


def accepted_lengths(tree: Tree, ranks: Int[Tensor, "a k"]) -> Int[Tensor, " a"]:
    """How many draft tokens of a tree each start would accept."""
    children = tree.children
    node = torch.zeros(len(ranks), dtype=torch.int64)
    length = torch.zeros(len(ranks), dtype=torch.int64)
    alive = torch.ones(len(ranks), dtype=torch.bool)
    for k in range(min(tree.height, ranks.shape[1])):
        rank = ranks[:, k]
        alive &= rank < children.shape[1]
        following = children[node, rank.clamp_max(children.shape[1] - 1)]
        alive &= following >= 0
        node = torch.where(alive, following, node)
        length += alive
    return length


def walk(lengths: Int[Tensor, " a"]) -> tuple[int, int]:
    """(tokens, calls) of one rollout of A - 1 tokens: every call emits what it accepts and one token more, up to the rollout's
    end. The first call's root is the prompt's last token, as in the engine."""
    steps, at, calls, last = lengths.tolist(), 0, 0, len(lengths) - 1
    while at < last:
        at += steps[at] + 1
        calls += 1
    return last, calls


def tokens_per_call(lengths: Sequence[Int[Tensor, " _"]]) -> float:
    """TPC over several rollouts: emitted tokens over the target's calls, the prompt's pass not counted."""
    pairs = [walk(part) for part in lengths]
    return sum(tokens for tokens, _ in pairs) / max(1, sum(calls for _, calls in pairs))

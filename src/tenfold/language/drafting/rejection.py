"""Rejection sampling of draft tokens: which are accepted, so that the text has exactly the distribution of the target.

Greedy: go to the child that is the argmax. Sampling, at a node whose distribution is p: r <- p; each sibling in the drafter's
order is accepted with probability min(1, r[x] / q_j[x]), else r <- normalised (r - q_j)+; when all are rejected, one token is
drawn from r. One round gives min(q, r)(x) + P(reject) (r - q)+(x) / sum = r(x); induction over rounds and depth gives p.

What q_j is depends on how the siblings were chosen (`Rule`):
    top_k                the most likely ones          a point mass: accept with r[x], then r[x] <- 0
    independent          independent draws from q      q
    without_replacement  draws without replacement     q with the ids drawn before at 0, renormalised
Taking the nodes of top_k as draws from q, dropping duplicates of independent draws, or leaving q as it is for draws without
replacement changes the distribution; tests measure by how much. Speculative sampling: arXiv 2211.17192, 2302.01318; several
siblings: arXiv 2305.09781; without replacement: 2402.14160.

    B requests   N root and nodes   n nodes   V vocabulary   K = height of the tree + 1   R siblings at most
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tenfold.language.drafting.protocol import Draft, DraftTrees, Rule
from tenfold.language.models.paged_forward import first_largest
from tenfold.language.sampling.sampling import SamplingTensors, draw, token_probabilities


@dataclass(frozen=True)
class Accepted:
    """path (B, K): the root and the accepted nodes, -1 behind them; length (B): how many nodes were accepted; bonus (B): the
    id of the token after the last of them, which the target chose itself."""

    path: Int[Tensor, "B K"]
    length: Int[Tensor, " B"]
    bonus: Int[Tensor, " B"]


def verify_greedy(logits: Float[Tensor, "B N V"], draft: Draft, tree: DraftTrees) -> Accepted:
    """The longest path on which every node is the argmax (the first of equals) behind its parent. Siblings may hold the
    same token, one drafted and one looked up (drafting/ngram.py): both are followed."""
    best = first_largest(logits)
    tree = tree.on(best.device)
    hit = F.pad(draft.tokens == tree.behind_parents(best), (1, 0), value=True)
    node = tree.deepest(hit)
    return Accepted(tree.path_to(node), tree.depth_of(node), best.gather(1, node[:, None])[:, 0])


def verify_sampled(
    logits: Float[Tensor, "B N V"],
    sampling: SamplingTensors,
    draft: Draft,
    tree: DraftTrees,
    uniforms: Float[Tensor, "B K R1"],
    rule: Rule,
) -> Accepted:
    """Accepts draft tokens by rejection sampling. uniforms[:, d, j] decides about the sibling of rank j at depth d + 1, the
    last entry of uniforms[:, d] draws the token when nothing at that depth was accepted. A pure function; it waits for no
    device."""
    tree = tree.on(logits.device)
    batch, path = _start(logits, tree)
    length, node = torch.zeros_like(batch), torch.zeros_like(batch)
    bonus, live = torch.full_like(batch, -1), torch.ones_like(batch, dtype=torch.bool)
    for depth in range(tree.height + 1):
        p = token_probabilities(logits[batch, node], sampling)
        r, q = p, _proposal(draft, tree, node, p)
        children, accepted = tree.children_of(node), torch.full_like(node, -1)
        for rank in range(children.shape[1]):
            child = children[:, rank]
            token = (
                draft.tokens[batch, (child - 1).clamp_min(0)] if draft.tokens.shape[1] else torch.full_like(child, -1)
            )
            asked = live & (child >= 0) & (token >= 0) & (accepted < 0)
            if _none(asked):
                continue
            x = token.clamp_min(0)[:, None]
            point = _is_point(draft, child, rule)
            has = r.gather(1, x)[:, 0]
            needs = torch.where(point, 1.0, q.gather(1, x)[:, 0])
            yes = asked & (uniforms[:, depth, rank] * needs < has)
            accepted = torch.where(yes, child, accepted)
            refused = (asked & ~yes)[:, None]
            dropped = r.scatter(1, x, 0.0)  # what is left of r when x was a point mass
            left = torch.where(point[:, None], dropped, (r - q).clamp_min(0.0))
            r = torch.where(refused, _normalised(left, p), r)
            if rule == "without_replacement":
                drawn = (asked & ~point)[:, None]
                q = torch.where(drawn, _normalised(q.scatter(1, x, 0.0), q), q)
        ended = live & (accepted < 0)
        if not _none(ended):
            bonus = torch.where(ended, draw(r, uniforms[:, depth, -1]), bonus)
        live = live & (accepted >= 0)
        if depth == tree.height or _none(live):
            break
        node = torch.where(live, accepted, node)
        path[:, depth + 1] = torch.where(live, accepted, -1)
        length += live
    return Accepted(path, length, bonus)


def simulate(
    logits: Float[Tensor, "B N V"], draft: Draft, tree: DraftTrees, coins: Float[Tensor, "B K"], share: float
) -> Accepted:
    """For timing with random weights: at every depth the first child is accepted when its coin is below `share`, whatever the
    target says of it. The text is not the target's."""
    tree = tree.on(logits.device)
    batch, path = _start(logits, tree)
    node = length = torch.zeros_like(batch)
    live = torch.ones_like(batch, dtype=torch.bool)
    for depth in range(tree.height):
        child = tree.children_of(node)[:, 0]
        live = live & (child >= 0) & (draft.tokens[batch, (child - 1).clamp_min(0)] >= 0) & (coins[:, depth] < share)
        node = torch.where(live, child, node)
        path[:, depth + 1] = torch.where(live, child, -1)
        length = length + live
    return Accepted(path, length, first_largest(logits)[batch, node])


def _start(logits: Tensor, tree: DraftTrees) -> tuple[Tensor, Tensor]:
    """The numbers of the requests, and their paths when nothing but the root is accepted."""
    path = torch.full((len(logits), tree.height + 1), -1, device=logits.device)
    path[:, 0] = 0
    return torch.arange(len(logits), device=logits.device), path


def _none(wanted: Tensor) -> bool:
    """Whether no request needs what comes next, where asking costs nothing: a device would have to be waited for."""
    return wanted.device.type == "cpu" and not bool(wanted.any())


def _proposal(draft: Draft, tree: DraftTrees, node: Tensor, like: Tensor) -> Tensor:
    """The distribution from which the children of `node` were drawn, over the target's vocabulary; zeros for a leaf."""
    if draft.q is None or not draft.q.shape[1]:
        return torch.zeros_like(like)
    row = tree.inner_row_of(node)
    q = draft.q[torch.arange(len(node), device=node.device), row.clamp_min(0)].to(like.dtype) * (row >= 0)[:, None]
    if draft.ids is None:
        return q
    return torch.zeros_like(like).scatter_(1, draft.ids.expand(len(q), -1), q)


def _is_point(draft: Draft, child: Tensor, rule: Rule) -> Tensor:
    if rule == "top_k" or draft.q is None:
        return torch.ones_like(child, dtype=torch.bool)
    if draft.point is None:
        return torch.zeros_like(child, dtype=torch.bool)
    return draft.point.gather(1, (child - 1).clamp_min(0)[:, None])[:, 0]


def _normalised(r: Tensor, otherwise: Tensor) -> Tensor:
    """r / sum r. Where rounding has left no mass (p equals q up to it), the most likely token of `otherwise`."""
    total = r.sum(-1, keepdim=True)
    point = torch.zeros_like(r).scatter_(1, otherwise.argmax(-1, keepdim=True), 1.0)
    return torch.where(total > 0, r / total.clamp_min(torch.finfo(r.dtype).tiny), point)

"""Which of the guessed tokens stand, so that the text has exactly the law of the target alone.

Greedy: go to the child that is the argmax. Sampling, at a node whose law is p: r <- p; each sibling in the drafter's order is
accepted with probability min(1, r[x] / q_j[x]), else r <- normalised (r - q_j)+; when all are rejected, one token is drawn
from r. One round gives min(q, r)(x) + P(reject) (r - q)+(x) / sum = r(x); induction over rounds and depth gives p.

What q_j is depends on how the siblings were chosen (`Rule`):
    A  the most likely ones          a point mass: accept with r[x], then r[x] <- 0
    B  independent draws from q      q
    C  draws without replacement     q with the ids drawn before at 0, renormalised
Taking A's nodes as draws from q, dropping duplicates in B, or leaving q as it is in C changes the law; tests measure by how
much. Speculative sampling: arXiv 2211.17192, 2302.01318; several siblings: arXiv 2305.09781; without replacement: 2402.14160.

    B requests   N root and nodes   n nodes   V vocabulary   K = height of the tree + 1   R siblings at most
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tenfold.language.drafting.dynamic import TreeBatch
from tenfold.language.drafting.protocol import Draft, Rule
from tenfold.language.drafting.tree import Tree
from tenfold.language.models.paged_forward import first_largest
from tenfold.language.sampling.sampling import Laws, draw, token_laws


@dataclass(frozen=True)
class Accepted:
    """path (B, K): the root and the accepted nodes, -1 behind them; length (B): how many nodes were accepted; bonus (B): the
    id of the token after the last of them, which the target chose itself."""

    path: Int[Tensor, "B K"]
    length: Int[Tensor, " B"]
    bonus: Int[Tensor, " B"]


def verify_greedy(logits: Float[Tensor, "B N V"], draft: Draft, tree: Tree | TreeBatch) -> Accepted:
    """The longest path on which every node is the argmax (the first of equals) behind its parent. Siblings may hold the
    same token, one drafted and one looked up (drafting/ngram.py): both are followed."""
    best = first_largest(logits)
    if isinstance(tree, TreeBatch):
        return _greedy_batch(best, draft, tree)
    tree = tree.on(best.device)
    hit = F.pad(draft.tokens == best[:, tree.parent[1:]], (1, 0), value=True)
    missed = (~hit).float() @ tree.mask.t().float()  # ancestors, itself among them, that are no hits
    node = torch.where(missed == 0, tree.depth, -1).argmax(-1)
    return Accepted(tree.ancestors[node], tree.depth[node], best.gather(1, node[:, None])[:, 0])


def _greedy_batch(best: Int[Tensor, "B N"], draft: Draft, trees: TreeBatch) -> Accepted:
    hit = F.pad(draft.tokens == best.gather(1, trees.parents[:, 1:]), (1, 0), value=True)
    stands = (hit[:, None, :] | ~trees.mask[:, 0]).all(-1)  # all ancestors are hits
    node = torch.where(stands, trees.depth, -1).argmax(-1)
    rows = torch.arange(len(best))
    length = trees.depth[rows, node]
    upwards = trees.ancestors[:, rows, node].t()  # from the node to the root
    place = length[:, None] - torch.arange(upwards.shape[1])
    path = torch.where(place >= 0, upwards.gather(1, place.clamp_min(0)), -1)
    return Accepted(path, length, best[rows, node])


def verify_sampled(
    logits: Float[Tensor, "B N V"],
    laws: Laws,
    draft: Draft,
    tree: Tree | TreeBatch,
    uniforms: Float[Tensor, "B K R1"],
    rule: Rule,
) -> Accepted:
    """See the module's docstring. uniforms[:, d, j] decides about the sibling of rank j at depth d + 1, the last entry of
    uniforms[:, d] draws the token when nothing at that depth was accepted. A pure function; it waits for no device."""
    tree = tree.on(logits.device) if isinstance(tree, Tree) else tree
    batch, path = _start(logits, tree)
    length, node = torch.zeros_like(batch), torch.zeros_like(batch)
    bonus, live = torch.full_like(batch, -1), torch.ones_like(batch, dtype=torch.bool)
    for depth in range(tree.height + 1):
        p = token_laws(logits[batch, node], laws)
        r, q = p, _proposal(draft, tree, node, p)
        children, accepted = tree.children_of(node), torch.full_like(node, -1)
        for rank in range(children.shape[1]):
            child = children[:, rank]
            guess = (
                draft.tokens[batch, (child - 1).clamp_min(0)] if draft.tokens.shape[1] else torch.full_like(child, -1)
            )
            asked = live & (child >= 0) & (guess >= 0) & (accepted < 0)
            if _none(asked):
                continue
            x = guess.clamp_min(0)[:, None]
            point = _is_point(draft, child, rule)
            has = r.gather(1, x)[:, 0]
            needs = torch.where(point, 1.0, q.gather(1, x)[:, 0])
            yes = asked & (uniforms[:, depth, rank] * needs < has)
            accepted = torch.where(yes, child, accepted)
            refused = (asked & ~yes)[:, None]
            dropped = r.scatter(1, x, 0.0)  # what is left of r when x was a point mass
            left = torch.where(point[:, None], dropped, (r - q).clamp_min(0.0))
            r = torch.where(refused, _normalised(left, p), r)
            if rule == "C":
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
    logits: Float[Tensor, "B N V"], draft: Draft, tree: Tree | TreeBatch, coins: Float[Tensor, "B K"], share: float
) -> Accepted:
    """For timing with weights that guess nothing: at every depth the first child stands when its coin is below `share`,
    whatever the target says of it. The text is nobody's."""
    tree = tree.on(logits.device) if isinstance(tree, Tree) else tree
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


def _start(logits: Tensor, tree: Tree | TreeBatch) -> tuple[Tensor, Tensor]:
    """The numbers of the requests, and their paths when only the root stands."""
    path = torch.full((len(logits), tree.height + 1), -1, device=logits.device)
    path[:, 0] = 0
    return torch.arange(len(logits), device=logits.device), path


def _none(wanted: Tensor) -> bool:
    """Whether nobody wants what comes next, where asking costs nothing: a device would have to be waited for."""
    return wanted.device.type == "cpu" and not bool(wanted.any())


def _proposal(draft: Draft, tree: Tree | TreeBatch, node: Tensor, like: Tensor) -> Tensor:
    """The law from which the children of `node` were drawn, over the target's vocabulary; zeros for a leaf."""
    if draft.q is None or isinstance(tree, TreeBatch) or not len(tree.inner):
        return torch.zeros_like(like)
    row = tree.inner_row[node]
    q = draft.q[torch.arange(len(node), device=node.device), row.clamp_min(0)].to(like.dtype) * (row >= 0)[:, None]
    if draft.ids is None:
        return q
    return torch.zeros_like(like).scatter_(1, draft.ids.expand(len(q), -1), q)


def _is_point(draft: Draft, child: Tensor, rule: Rule) -> Tensor:
    if rule == "A" or draft.q is None:
        return torch.ones_like(child, dtype=torch.bool)
    if draft.point is None:
        return torch.zeros_like(child, dtype=torch.bool)
    return draft.point.gather(1, (child - 1).clamp_min(0)[:, None])[:, 0]


def _normalised(r: Tensor, otherwise: Tensor) -> Tensor:
    """r / sum r. Where rounding has left no mass (p equals q up to it), the most likely token of `otherwise`."""
    total = r.sum(-1, keepdim=True)
    point = torch.zeros_like(r).scatter_(1, otherwise.argmax(-1, keepdim=True), 1.0)
    return torch.where(total > 0, r / total.clamp_min(torch.finfo(r.dtype).tiny), point)

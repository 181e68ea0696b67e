"""Dynamic trees (EAGLE-2, arXiv 2406.16858): the drafter's own confidence decides where a tree grows, anew for every text.

    Speculation(tree="dynamic")                             DynamicTree(top_k=10, depth=7, total=60)
    draft, trees = draft_dynamic(drafter, states, DynamicTree())

From the root's `top_k` guesses on, every level expands the `top_k` guesses of the highest probability along their path by as
many guesses each; in the end the best `total` - 1 of all candidates stay. A child is never more likely than its parent, and
of equals the earlier stays, so what stays is a tree. The guesses are the most likely tokens whatever the request's temperature:
point masses, checked by rule A (drafting/rejection.py). All requests grow at once, in tensors; nothing runs for single nodes.

The released code counts as here: `depth` expansions follow the root's own guesses, `total` includes the root.

    B requests   N root and nodes   n nodes   k beams   C candidates   R children of a node at most
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tenfold.config import require
from tenfold.language.drafting.protocol import Draft, DraftState
from tenfold.language.drafting.tree import LIMIT, Tree

if TYPE_CHECKING:
    from tenfold.language.drafting.tree_drafter import TreeDrafter


@dataclass(frozen=True)
class DynamicTree:
    """How dynamic trees grow. `nodes` is the room that one needs: the drafter's rows of all levels, or the tree itself."""

    top_k: int = 10
    depth: int = 7
    total: int = 60

    def __post_init__(self) -> None:
        require(self.top_k >= 1, "tree.top_k", self.top_k, "a whole number >= 1")
        require(self.depth >= 0, "tree.depth", self.depth, "a whole number >= 0")
        require(2 <= self.total <= LIMIT + 1, "tree.total", self.total, f"2 to {LIMIT + 1}, the root among them")

    @property
    def nodes(self) -> int:
        return max(self.total - 1, self.depth * self.top_k)

    @property
    def height(self) -> int:
        return self.depth + 1


class TreeBatch:
    """A tree for every request, of equal size: parents (B, N) as those of `Tree`, one row for each."""

    def __init__(self, parents: Int[Tensor, "B N"], height: int) -> None:
        self.parents, self.height = parents, height
        self.nodes = parents.shape[1] - 1

    @cached_property
    def ancestors(self) -> Int[Tensor, "K B N"]:
        """Every node, its parent, the parent's parent, ...: the root's parent is the root."""
        steps = [torch.arange(self.nodes + 1).expand_as(self.parents)]
        for _ in range(self.height):
            steps.append(self.parents.gather(1, steps[-1]))
        return torch.stack(steps)

    @cached_property
    def depth(self) -> Int[Tensor, "B N"]:
        return (self.ancestors > 0).sum(0)

    @cached_property
    def mask(self) -> Bool[Tensor, "B 1 N N"]:
        """Row i is True at i and its ancestors."""
        mask = torch.zeros(*self.parents.shape, self.nodes + 1, dtype=torch.bool)
        for nodes in self.ancestors:
            mask.scatter_(2, nodes[..., None], value=True)
        return mask[:, None]

    @cached_property
    def children(self) -> Int[Tensor, "B N R"]:
        """Children of every node by rank, -1 where there is none."""
        p = self.parents[:, 1:]
        earlier = torch.ones(self.nodes, self.nodes, dtype=torch.bool).tril(-1)
        rank = ((p[:, :, None] == p[:, None, :]) & earlier).sum(-1)
        table = torch.full((len(p), self.nodes + 1, int(rank.max()) + 1), -1)
        table[torch.arange(len(p))[:, None], p, rank] = torch.arange(1, self.nodes + 1)
        return table

    @property
    def siblings(self) -> int:
        return self.children.shape[2]

    def children_of(self, node: Int[Tensor, " B"]) -> Int[Tensor, "B R"]:
        return self.children[torch.arange(len(node)), node]

    def one(self, request: int) -> Tree:
        """The tree of one request."""
        return Tree(tuple(self.parents[request].tolist()))


def draft_dynamic(drafter: TreeDrafter, states: Sequence[DraftState], shape: DynamicTree) -> tuple[Draft, TreeBatch]:
    """Guesses and trees for all requests, on the host. Leaves the drafter's rows as they were."""
    assert drafter.cache is not None
    batch, window, device = len(states), drafter.network.config.sliding_window, drafter.device
    hidden = torch.stack([state.carry[0] for state in states])[:, None]
    logits = torch.stack([state.carry[1] for state in states])[:, None].float()
    k = min(shape.top_k, logits.shape[-1])
    rows, tables = [state.rows for state in states], [state.table for state in states]
    every = torch.arange(batch * k, device=device)
    here = torch.arange(batch, device=device)[:, None]
    # Of the candidates so far: scores, tokens, and the candidate that each hangs on (-1: the root).
    scores = torch.empty(batch, 0, device=device)
    tokens = parents = torch.empty(batch, 0, dtype=torch.int64, device=device)
    beams = torch.full((batch, 1), -1, device=device)
    seen = torch.empty(batch, 1, 0, dtype=torch.bool, device=device)  # which of the drafter's new rows a beam sees
    for level in range(shape.depth + 1):
        best, ids = logits.log_softmax(-1).topk(k, dim=-1)
        best = best if level == 0 else best + scores.gather(1, beams)[..., None]
        first = scores.shape[1]
        scores = torch.cat([scores, best.flatten(1)], dim=1)
        tokens = torch.cat([tokens, drafter.network.target_ids(ids.flatten(1))], dim=1)
        parents = torch.cat([parents, beams.repeat_interleave(k, dim=1)], dim=1)
        if level == shape.depth:
            break
        order = scores[:, first:].sort(dim=1, descending=True, stable=True).indices[:, :k]
        order = order.sort(dim=1).values  # of the candidates, so that children stand in the order of their parents
        owner = order // k
        beams = first + order
        own = torch.eye(k, dtype=torch.bool, device=device).expand(batch, k, k)
        seen = torch.cat([seen[here, owner], own], dim=2)
        lows = None if window is None else [max(0, r + level + 1 - window) for r in rows]
        step = drafter.cache.step(tables, [r + level * k for r in rows], [k] * batch, lows)
        positions = (torch.tensor(rows).to(device)[:, None] + level).expand(-1, k)
        embeds = drafter.embed(tokens.gather(1, beams))
        feed, logits = drafter.run(embeds, hidden[here, owner], positions, step, seen[:, None], every)
        hidden, logits = feed.unflatten(0, (batch, k)), logits.float().unflatten(0, (batch, k))
    kept = scores.sort(dim=1, descending=True, stable=True).indices[:, : shape.total - 1].sort(dim=1).values
    # The number of a candidate in the tree; the last is the root.
    number = torch.zeros(batch, scores.shape[1] + 1, dtype=torch.int64, device=device)
    number[here, kept] = torch.arange(1, kept.shape[1] + 1, device=device)
    above = number.gather(1, parents.gather(1, kept) % number.shape[1])
    whole = torch.cat([torch.zeros_like(above[:, :1]), above], dim=1)
    return Draft(tokens.gather(1, kept)).cpu(), TreeBatch(whole.cpu(), shape.height)

"""A batch of draft trees: one tree of its own for every request, all of one size, verified together (dynamic trees, EAGLE-2).

    trees = TreeBatch(parents, height)                  made by drafting/dynamic.py

It answers what `Tree` answers (drafting/tree.py), with a row for every request.

    B requests   N root and nodes   n nodes   K height + 1   R children of a node at most
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tenfold.language.drafting.tree import Tree


class TreeBatch:
    """A tree for every request, of equal size: parents (B, N) as those of `Tree`, one row for each. It lies on the host, and
    all its draft tokens are point masses."""

    shared: ClassVar[bool] = False

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

    def inner_row_of(self, node: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """No node has a distribution."""
        return torch.full_like(node, -1)

    def on(self, device: torch.device) -> TreeBatch:
        """The trees of the host."""
        return self

    def one(self, request: int) -> Tree:
        """The tree of one request."""
        return Tree(tuple(self.parents[request].tolist()))

    def mask_of(self, request: int) -> Bool[Tensor, "N N"]:
        """The mask of one request."""
        return self.mask[request, 0]

    def spread(self, able: list[int], batch: int) -> TreeBatch:
        """The trees of a whole batch, when only the requests `able` have any."""
        parents = self.parents.new_zeros(batch, self.nodes + 1)
        parents[able] = self.parents
        return TreeBatch(parents, self.height)

    def behind_parents(self, best: Int[Tensor, "B N"]) -> Int[Tensor, "B n"]:
        """Of one token behind every node, the one behind each node's parent."""
        return best.gather(1, self.parents[:, 1:])

    def deepest(self, hit: Bool[Tensor, "B N"]) -> Int[Tensor, " B"]:
        """The deepest node that is a hit with all its ancestors; the root is one."""
        reached = (hit[:, None, :] | ~self.mask[:, 0]).all(-1)
        return torch.where(reached, self.depth, -1).argmax(-1)

    def depth_of(self, node: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Depth of one node of every request."""
        return self.depth[torch.arange(len(node)), node]

    def path_to(self, node: Int[Tensor, " B"]) -> Int[Tensor, "B K"]:
        """The path from the root to one node of every request, then -1."""
        upwards = self.ancestors[:, torch.arange(len(node)), node].t()  # from the node to the root
        place = self.depth_of(node)[:, None] - torch.arange(upwards.shape[1])
        return torch.where(place >= 0, upwards.gather(1, place.clamp_min(0)), -1)

"""Dynamic draft trees (EAGLE-2, arXiv 2406.16858): the drafter's confidence decides where a tree grows, for every text afresh.

    Speculation(tree="dynamic")                             DynamicTree(top_k=10, depth=7, total=60)
    draft, trees = draft_dynamic(drafter, states, DynamicTree())

From the root's `top_k` draft tokens on, every level expands the `top_k` candidates of the highest probability along their path
by as many children each; in the end the best `total` - 1 of all candidates stay. A child is never more likely than its parent,
and of equals the earlier stays, so what stays is a tree. Draft tokens are the most likely ones whatever the request's
temperature: point masses, verified by rule top_k (drafting/rejection.py). All requests grow at once, in tensors; nothing runs
for single nodes.

The released code counts as here: `depth` expansions follow the root's own children, `total` includes the root.

    B requests   k beams   C candidates
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tenfold.config import require
from tenfold.inference.pages import PagedCache
from tenfold.language.drafting.drafter import Stores
from tenfold.language.drafting.protocol import Draft, Drafter, DraftState, DraftTrees, Growth, Rule, Uniforms
from tenfold.language.drafting.tree import LIMIT
from tenfold.language.drafting.tree_batch import TreeBatch


@dataclass(frozen=True)
class DynamicTree:
    """How dynamic trees grow. `nodes` is the room that one needs: the drafter's rows of all levels, or the tree itself."""

    top_k: int = 10
    depth: int = 7
    total: int = 60
    needs_distribution: ClassVar[bool] = True
    needs_lookup: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self.top_k >= 1, "tree.top_k", self.top_k, "a whole number >= 1")
        require(self.depth >= 0, "tree.depth", self.depth, "a whole number >= 0")
        require(2 <= self.total <= LIMIT + 1, "tree.total", self.total, f"2 to {LIMIT + 1}, the root among them")

    @property
    def in_company(self) -> DynamicTree:
        """Itself: it is one for each request."""
        return self

    @property
    def fixed(self) -> None:
        """No such tree exists."""
        return None

    @property
    def nodes(self) -> int:
        return max(self.total - 1, self.depth * self.top_k)

    @property
    def height(self) -> int:
        return self.depth + 1

    def propose(
        self,
        drafter: Drafter,
        states: Sequence[DraftState],
        rule: Rule,
        temperatures: Float[Tensor, " B"],
        uniforms: Uniforms,
    ) -> tuple[Draft, DraftTrees]:
        """The trees that the drafter grows; rule and temperatures change nothing."""
        return drafter.draft_dynamic(states, self)


@runtime_checkable
class LevelNetwork(Protocol):
    """What trees grow by: an EAGLE head with its KV cache (drafting/tree_drafter.py)."""

    cache: PagedCache | None
    device: torch.device

    @property
    def window(self) -> int | None: ...
    def embed(self, tokens: Tensor) -> Tensor: ...
    def target_ids(self, ids: Tensor) -> Tensor: ...
    def run(
        self, embeds: Tensor, hidden: Tensor, positions: Tensor, step: Stores, mask: Tensor | None, read: Tensor
    ) -> tuple[Tensor, Tensor]: ...


def draft_dynamic(drafter: LevelNetwork, states: Sequence[DraftState], shape: Growth) -> tuple[Draft, TreeBatch]:
    """Draft tokens and trees for all requests, on the host. Leaves the drafter's rows as they were."""
    assert drafter.cache is not None
    batch, window, device = len(states), drafter.window, drafter.device
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
        tokens = torch.cat([tokens, drafter.target_ids(ids.flatten(1))], dim=1)
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

"""Hybrid draft trees: a drafter's tree with a chain from prompt lookup beside it, and shapes that are fitted to the text.

    HybridTree.of(own_tree, looked_up=4)                a `Shape` (drafting/protocol.py) for a drafter that also looks up
    FittedTree(tree, known, unknown)                    another shape where the last two tokens were in the text before

The chain is the root's last child and what follows it. When both propose the same token it is in two nodes: its two
continuations then share nothing but the price of one node, the shape stays the same for every request of a batch, and each
proposal takes its own step of rejection sampling, which keeps the distribution exact. At temperature 0 both are verified and
the longer one counts, so a shared prefix loses nothing.

    B requests   P inner nodes of the drafter's tree   I inner nodes of the whole tree   W drafter's vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tenfold.language.drafting.protocol import Draft, Drafter, DraftState, DraftTrees, Rule, Uniforms
from tenfold.language.drafting.tree import Tree


@dataclass(frozen=True)
class HybridTree:
    """own: the drafter's tree. tree: all nodes. drafted: nodes of the drafter's own tree, in its order. chain: the chain's
    nodes from the root down."""

    own: Tree
    tree: Tree
    drafted: tuple[int, ...]
    chain: tuple[int, ...]
    needs_distribution: ClassVar[bool] = False
    needs_lookup: ClassVar[bool] = True

    @staticmethod
    def of(own: Tree, looked_up: int) -> HybridTree:
        """The drafter's tree and a chain of `looked_up` tokens."""
        paths = own.paths
        first = sum(len(path) == 1 for path in paths)
        added = [[first, *[0] * k] for k in range(looked_up)]
        tree = Tree.from_paths([*paths, *added])
        number = {tuple(path): node for node, path in enumerate(tree.paths, 1)}
        return HybridTree(own, tree, tuple(number[tuple(p)] for p in paths), tuple(number[tuple(p)] for p in added))

    @property
    def looked_up(self) -> int:
        return len(self.chain)

    @property
    def in_company(self) -> HybridTree:
        """Itself: it is the same in any company."""
        return self

    @property
    def fixed(self) -> None:
        """No such tree exists: the text decides."""
        return None

    @property
    def nodes(self) -> int:
        return self.tree.nodes

    def propose(
        self,
        drafter: Drafter,
        states: Sequence[DraftState],
        rule: Rule,
        temperatures: Float[Tensor, " B"],
        uniforms: Uniforms,
    ) -> tuple[Draft, DraftTrees]:
        """The drafter's proposal and that of prompt lookup in one tree."""
        drawn = drafter.draft(states, self.own, rule, temperatures, uniforms)
        tokens = torch.full((len(states), self.tree.nodes), -1, device=drawn.tokens.device)
        drafted, chain = torch.tensor(self.drafted) - 1, torch.tensor(self.chain) - 1
        tokens[:, drafted] = drawn.tokens
        for b, state in enumerate(states):
            found = drafter.look_up(state, len(chain))
            tokens[b, chain[: len(found)]] = torch.tensor(found, dtype=torch.int64, device=tokens.device)
        if drawn.q is None:
            return Draft(tokens), self.tree
        point = torch.zeros_like(tokens, dtype=torch.bool)
        point[:, chain] = True
        if drawn.point is not None:
            point[:, drafted] = drawn.point
        return Draft(tokens, self.whole_q(drawn.q), drawn.ids, point), self.tree

    def whole_q(self, q: Float[Tensor, "B P W"]) -> Float[Tensor, "B I W"]:
        """q of the drafter's inner nodes at their rows among all inner nodes; those of the chain have none (zeros)."""
        nodes = torch.tensor([0, *self.drafted])[self.own.inner]
        laid = q.new_zeros(q.shape[0], len(self.tree.inner), q.shape[2])
        laid[:, self.tree.inner_row[nodes]] = q
        return laid


@dataclass(frozen=True)
class FittedTree:
    """Shapes of one size for different texts. `tree` is for several requests at once; for a single one, `known` where its last
    two tokens at least were in the text before (what followed then follows again in seven of ten cases), else `unknown`."""

    tree: HybridTree
    known: HybridTree
    unknown: Tree
    needs_distribution: ClassVar[bool] = False
    needs_lookup: ClassVar[bool] = True

    def __post_init__(self) -> None:
        assert max(self.known.nodes, self.unknown.nodes) <= self.tree.nodes, "room is made for the nodes of `tree`"

    @property
    def in_company(self) -> HybridTree:
        """The shape for several requests at once."""
        return self.tree

    @property
    def fixed(self) -> None:
        """No such tree exists: the text decides."""
        return None

    @property
    def nodes(self) -> int:
        return self.tree.nodes

    def fit(self, drafter: Drafter, states: Sequence[DraftState]) -> HybridTree | Tree:
        """The shape for these texts."""
        if len(states) != 1:
            return self.tree
        return self.known if drafter.matched(states[0]) >= 2 else self.unknown

    def propose(
        self,
        drafter: Drafter,
        states: Sequence[DraftState],
        rule: Rule,
        temperatures: Float[Tensor, " B"],
        uniforms: Uniforms,
    ) -> tuple[Draft, DraftTrees]:
        """The proposal in the shape for these texts."""
        return self.fit(drafter, states).propose(drafter, states, rule, temperatures, uniforms)

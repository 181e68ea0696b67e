"""Prompt look-up: what followed the last few tokens when they stood in the text before (a drafter without training).

    drafter = NgramDrafter()                            a `Drafter` (drafting/protocol.py)
    both = HybridDrafter(TreeDrafter(network, target), NgramDrafter())
    tree = both.add(HybridTree.of(own_tree, looked_up=4))

The longest n-gram (3 down to 1) at the text's end that has stood before gives the guess: the tokens behind its latest
earlier place. A hybrid tree is the drafter's tree with one looked-up chain as the root's last child. When both propose the
same token it stands in two nodes: its two continuations then share nothing but the price of one node, the shape stays the
same for every request of a batch, and each proposal takes its own step of acceptance, which keeps the law exact. At
temperature 0 both are checked and the longer one counts, so a shared prefix loses nothing.

Prompt look-up decoding: A. Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding.

    B requests   n nodes of a tree
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenfold.inference.pages import PagedCache
from tenfold.language.drafting.protocol import Draft, Drafter, DraftState, Features, Rule, Uniforms
from tenfold.language.drafting.tree import Tree

LONGEST = 3  # tokens of the n-grams looked for, down to 1


@dataclass
class Places:
    """Where every n-gram of a text stood last, and before that: kept up to date as the text grows."""

    longest: int = LONGEST
    done: int = 0
    latest: dict[tuple[int, ...], int] = field(default_factory=dict)  # n-gram -> the place behind its latest end
    earlier: dict[tuple[int, ...], int] = field(default_factory=dict)  # ... and behind the one before

    def update(self, tokens: Sequence[int]) -> None:
        for end in range(self.done + 1, len(tokens) + 1):
            for n in range(1, min(self.longest, end) + 1):
                gram = tuple(tokens[end - n : end])
                if gram in self.latest:
                    self.earlier[gram] = self.latest[gram]
                self.latest[gram] = end
        self.done = len(tokens)

    def find(self, tokens: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens that followed the text's last n-gram the last time that it stood before."""
        self.update(tokens)
        for n in range(min(self.longest, len(tokens)), 0, -1):
            place = self.earlier.get(tuple(tokens[len(tokens) - n :]))
            if place is not None:
                return list(tokens[place : place + count])
        return []

    def matched(self, tokens: Sequence[int]) -> int:
        """Tokens of the longest n-gram at the text's end that has stood before; 0 for none."""
        self.update(tokens)
        ends = range(min(self.longest, len(tokens)), 0, -1)
        return next((n for n in ends if tuple(tokens[len(tokens) - n :]) in self.earlier), 0)


class NgramDrafter:
    """Looks up along the first ranks of a tree: a chain. Nodes off the chain stay empty."""

    features: Features = "none"
    aux_layers: tuple[int, ...] = ()
    free_rows = 8  # rows of the target's pass that cost little more than one (drafting/speculation.py)

    def __init__(self, longest: int = LONGEST) -> None:
        self.longest = longest

    def open(self, pages: int, page_size: int) -> PagedCache | None:
        return None

    def extend(
        self,
        states: Sequence[DraftState],
        counts: Sequence[int],
        tokens: Int[Tensor, " M"],
        features: Float[Tensor, "M F"] | None,
    ) -> None:
        for state, count in zip(states, counts, strict=True):
            state.rows += count

    def draft(
        self,
        states: Sequence[DraftState],
        tree: Tree,
        rule: Rule,
        temperatures: Float[Tensor, " B"],
        uniforms: Uniforms,
    ) -> Draft:
        nodes = chain_nodes(tree)
        tokens = torch.full((len(states), tree.nodes), -1)
        for b, state in enumerate(states):
            found = self.look_up(state, len(nodes))
            tokens[b, [node - 1 for node in nodes[: len(found)]]] = torch.tensor(found, dtype=torch.int64)
        return Draft(tokens)

    def look_up(self, state: DraftState, count: int) -> list[int]:
        """The chain of up to `count` tokens behind a request's text."""
        return self._places(state).find(state.tokens, count)

    def matched(self, state: DraftState) -> int:
        """How many of a request's last tokens have stood before, one behind the other."""
        return self._places(state).matched(state.tokens)

    def _places(self, state: DraftState) -> Places:
        if not isinstance(state.carry, Places) or state.carry.done > len(state.tokens):
            state.carry = Places(self.longest)
        return state.carry


def chain_nodes(tree: Tree) -> list[int]:
    """The nodes of first rank behind first rank, from the root down."""
    nodes, at = [], int(tree.next_token[0])
    while at >= 0:
        nodes.append(at)
        at = int(tree.next_token[at])
    return nodes


@dataclass(frozen=True)
class HybridTree:
    """A tree of the drafter with a looked-up chain beside it: the chain is the last child of the root and what follows.

    tree: all nodes. drafted: nodes of the drafter's own tree, in its order. chain: the chain's nodes from the root down.
    """

    own: Tree
    tree: Tree
    drafted: tuple[int, ...]
    chain: tuple[int, ...]

    @staticmethod
    def of(own: Tree, looked_up: int) -> HybridTree:
        """The drafter's tree and a chain of `looked_up` tokens."""
        paths = own.paths
        first = sum(len(path) == 1 for path in paths)
        added = [[first, *[0] * k] for k in range(looked_up)]
        tree = Tree.from_paths([*paths, *added])
        number = {tuple(path): node for node, path in enumerate(tree.paths, 1)}
        return HybridTree(own, tree, tuple(number[tuple(p)] for p in paths), tuple(number[tuple(p)] for p in added))

    def laws(self, q: Float[Tensor, "B P W"]) -> Float[Tensor, "B I W"]:
        """q of the drafter's inner nodes at their rows among all inner nodes; those of the chain have none (zeros)."""
        nodes = torch.tensor([0, *self.drafted])[self.own.inner]
        laid = q.new_zeros(q.shape[0], len(self.tree.inner), q.shape[2])
        laid[:, self.tree.inner_row[nodes]] = q
        return laid


@dataclass(frozen=True)
class FittedTree:
    """Shapes of one size for different texts. `tree` is for several requests at once; for a single one, `known` where its last
    two tokens at least have stood before (what followed then follows again in seven of ten cases), else `unknown`."""

    tree: HybridTree
    known: HybridTree
    unknown: Tree

    def __post_init__(self) -> None:
        most = self.tree.tree.nodes
        assert max(self.known.tree.nodes, self.unknown.nodes) <= most, "room is made for the nodes of `tree`"


class HybridDrafter:
    """A drafter and prompt look-up in one tree. `draft` takes a tree that `add` has made, or one for the drafter alone."""

    free_rows = 8

    def __init__(self, drafter: Drafter, lookup: NgramDrafter) -> None:
        self.drafter, self.lookup = drafter, lookup
        self.features: Features = drafter.features
        self.aux_layers = drafter.aux_layers
        self._hybrids: dict[Tree, HybridTree] = {}
        self._fitted: dict[Tree, FittedTree] = {}

    def add(self, hybrid: HybridTree | FittedTree) -> Tree:
        """Makes a hybrid tree known; returns what `draft` is to be given."""
        if isinstance(hybrid, FittedTree):
            self.add(hybrid.known)
            tree = self.add(hybrid.tree)
            self._fitted[tree] = hybrid
            return tree
        self._hybrids[hybrid.tree] = hybrid
        self._fitted.pop(hybrid.tree, None)
        return hybrid.tree

    def fit(self, states: Sequence[DraftState], tree: Tree) -> Tree:
        """The shape for these texts, of no more nodes than `tree`."""
        fitted = self._fitted.get(tree)
        if fitted is None or len(states) != 1:
            return tree
        part = _part(states[0], 1)
        matched = self.lookup.matched(part)
        states[0].carry[1] = part.carry
        return fitted.known.tree if matched >= 2 else fitted.unknown

    def open(self, pages: int, page_size: int) -> PagedCache | None:
        return self.drafter.open(pages, page_size)

    def extend(
        self,
        states: Sequence[DraftState],
        counts: Sequence[int],
        tokens: Int[Tensor, " M"],
        features: Float[Tensor, "M F"] | None,
    ) -> None:
        own = [_part(state, 0) for state in states]
        self.drafter.extend(own, counts, tokens, features)
        for state, part in zip(states, own):
            state.rows, state.carry[0] = part.rows, part.carry

    def draft(
        self,
        states: Sequence[DraftState],
        tree: Tree,
        rule: Rule,
        temperatures: Float[Tensor, " B"],
        uniforms: Uniforms,
    ) -> Draft:
        own = [_part(state, 0) for state in states]
        hybrid = self._hybrids.get(tree)
        if hybrid is None:
            return self.drafter.draft(own, tree, rule, temperatures, uniforms)
        drawn = self.drafter.draft(own, hybrid.own, rule, temperatures, uniforms)
        tokens = torch.full((len(states), tree.nodes), -1, device=drawn.tokens.device)
        drafted, chain = torch.tensor(hybrid.drafted) - 1, torch.tensor(hybrid.chain) - 1
        tokens[:, drafted] = drawn.tokens
        for b, state in enumerate(states):
            part = _part(state, 1)
            found = self.lookup.look_up(part, len(chain))
            state.carry[1] = part.carry
            tokens[b, chain[: len(found)]] = torch.tensor(found, dtype=torch.int64, device=tokens.device)
        if drawn.q is None:
            return Draft(tokens)
        point = torch.zeros_like(tokens, dtype=torch.bool)
        point[:, chain] = True
        if drawn.point is not None:
            point[:, drafted] = drawn.point
        return Draft(tokens, hybrid.laws(drawn.q), drawn.ids, point)


def own_part(state: DraftState) -> DraftState:
    """A request as the drafter of a hybrid sees it."""
    return _part(state, 0)


def _part(state: DraftState, which: int) -> DraftState:
    """The request as one of the two drafters sees it: with what that one keeps."""
    if not isinstance(state.carry, list):
        state.carry = [None, None]
    return DraftState(state.tokens, state.table, state.rows, state.carry[which])

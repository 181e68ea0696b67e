"""Prompt lookup (n-gram drafting): draft tokens are what followed the last few tokens where the text had them before.

    drafter = NgramDrafter()                            a `Drafter` (drafting/protocol.py) without training
    both = HybridDrafter(TreeDrafter(network, target), NgramDrafter())
    Speculation(tree=HybridTree.of(own_tree, looked_up=4))      shapes of both are in drafting/hybrid_trees.py

The longest n-gram (3 down to 1) at the text's end that the text had before gives the proposal: the tokens behind its latest
earlier place. Prompt lookup decoding: A. Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding.

    B requests   n nodes of a tree
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenfold.inference.pages import PagedCache
from tenfold.language.drafting.protocol import Draft, Drafter, DraftState, DraftTrees, Growth, Rule, Uniforms
from tenfold.language.drafting.tree import Tree

LONGEST = 3  # tokens of the n-grams looked for, down to 1


@dataclass
class Places:
    """Where every n-gram of a text was last, and before that: kept up to date as the text grows."""

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
        """Up to `count` tokens that followed the text's last n-gram the last time that the text had it."""
        self.update(tokens)
        for n in range(min(self.longest, len(tokens)), 0, -1):
            place = self.earlier.get(tuple(tokens[len(tokens) - n :]))
            if place is not None:
                return list(tokens[place : place + count])
        return []

    def matched(self, tokens: Sequence[int]) -> int:
        """Tokens of the longest n-gram at the text's end that the text had before; 0 for none."""
        self.update(tokens)
        ends = range(min(self.longest, len(tokens)), 0, -1)
        return next((n for n in ends if tuple(tokens[len(tokens) - n :]) in self.earlier), 0)


class NgramDrafter(Drafter):
    """Looks up along the first ranks of a tree: a chain. Nodes off the chain stay empty."""

    def __init__(self, longest: int = LONGEST) -> None:
        self.longest = longest

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
        return self._places(state).find(state.tokens, count)

    def matched(self, state: DraftState) -> int:
        return self._places(state).matched(state.tokens)

    def fingerprint(self) -> str:
        return "ngram"

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


class HybridDrafter(Drafter):
    """A drafter with prompt lookup beside it. Each keeps its own part of a request's state."""

    looks_up = True

    def __init__(self, drafter: Drafter, lookup: NgramDrafter) -> None:
        self.drafter, self.lookup = drafter, lookup
        self.features, self.aux_layers = drafter.features, drafter.aux_layers
        self.has_distribution, self.trained_for = drafter.has_distribution, drafter.trained_for
        self.planner = None

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
        return self.drafter.draft([_part(state, 0) for state in states], tree, rule, temperatures, uniforms)

    def draft_dynamic(self, states: Sequence[DraftState], growth: Growth) -> tuple[Draft, DraftTrees]:
        return self.drafter.draft_dynamic([_part(state, 0) for state in states], growth)

    def look_up(self, state: DraftState, count: int) -> list[int]:
        part = _part(state, 1)
        found = self.lookup.look_up(part, count)
        state.carry[1] = part.carry
        return found

    def matched(self, state: DraftState) -> int:
        part = _part(state, 1)
        length = self.lookup.matched(part)
        state.carry[1] = part.carry
        return length

    def fingerprint(self) -> str:
        """The drafter's: tokens from prompt lookup come out of the text itself."""
        return self.drafter.fingerprint()

    def level_pass(self, batch: int, rows: int, text: int) -> Callable[[], object] | None:
        return self.drafter.level_pass(batch, rows, text)


def _part(state: DraftState, which: int) -> DraftState:
    """The request as one of the two drafters sees it: with what that one keeps."""
    if not isinstance(state.carry, list):
        state.carry = [None, None]
    return DraftState(state.tokens, state.table, state.rows, state.carry[which])

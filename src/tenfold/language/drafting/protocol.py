"""What the engine and a drafter say to each other. EAGLE heads, prompt look-up and their combinations all speak it.

A request's text is t_0 .. t_{L-1}; the last token is emitted but has not been through the target yet: it is the root of the
next tree. The target's row i is token t_i at position i; it has the feature g_i (what the drafter asks for in `features`) and
the law of t_{i+1}. The drafter's row i is the pair (t_{i+1}, g_i) at position i and has the law of t_{i+2}; so L - 1 rows are
complete before each step, and the last of them gives the law of the root's children.

One step of the engine:
    draft = drafter.draft(states, tree, rule, temperatures, uniforms)
    (the target checks root and nodes; a nodes of a request are accepted, a + 1 tokens emitted)
    drafter.extend(states, counts, tokens, features)            with the target's own features, never the drafter's
After it, the drafter's rows are those of a fresh pass over the emitted text: rows written while drafting are dropped.

    B requests   n nodes of the tree   P its inner nodes   M new rows of all requests together   W drafter's vocabulary
    V target's vocabulary   F width of a feature
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from tenfold.inference.pages import PagedCache, PageTable
from tenfold.language.drafting.tree import Tree

Rule = Literal["A", "B", "C"]
"""How siblings were chosen, which decides how they are checked (drafting/rejection.py):
A the most likely ones; B drawn independently from q; C drawn from q without replacement (Gumbel top-k, order of keys)."""

Features = Literal["none", "aux", "hidden"]
"""What a drafter wants of the target: nothing, the inputs of `aux_layers` side by side, or the state after the last norm."""


@dataclass(frozen=True)
class Draft:
    """Guesses for one step, for all requests.

    tokens (B, n): the target's id of nodes 1..n in the tree's order; -1 where there is no guess (its descendants are -1 too).
    q (B, P, W): for every inner node in the tree's order, the law from which its children were chosen, after the drafter's own
    temperature; None when every node is a point mass (rule A, prompt look-up).
    ids (W): the target's id of every entry of q; None when they are the same.
    point (B, n): nodes that are point masses although the rule is B or C (looked up in the text); None for none. Such a node
    does not count among the draws of its siblings.
    """

    tokens: Int[Tensor, "B n"]
    q: Float[Tensor, "B P W"] | None = None
    ids: Int[Tensor, " W"] | None = None
    point: Bool[Tensor, "B n"] | None = None

    def cpu(self) -> Draft:
        """The same where the host can read it."""
        if self.tokens.device.type == "cpu":
            return self
        parts = (None if part is None else part.cpu() for part in (self.q, self.ids, self.point))
        return Draft(self.tokens.cpu(), *parts)


@dataclass
class DraftState:
    """One request as a drafter sees it. The engine owns everything but `carry`.

    tokens: the ids t_0 .. t_{L-1}, prompt and emitted; the same list that the engine appends to. Do not change it.
    table: the request's pages, shared by the target's cache and the drafter's own.
    rows: the drafter's rows that its pages hold; `extend` adds to it. The engine sets it back on preemption.
    carry: whatever the drafter keeps between steps (the last row's hidden state and law).
    waiting: (tokens, features) of rows that were decoded while nothing was drafted; `extend` gets them before the next draft.
    """

    tokens: list[int]
    table: PageTable
    rows: int = 0
    carry: Any = None
    waiting: list[tuple[list[int], Tensor | None]] = field(default_factory=list)


@runtime_checkable
class Uniforms(Protocol):
    """Numbers in (0, 1) that depend on (request seed, emitted position, slot, index) alone, never on the batch."""

    def __call__(self, slots: Int[Tensor, " S"], width: int) -> Float[Tensor, "B S width"]:
        """One row of `width` for every slot. A drafter's slots are the tree's inner nodes (node numbers)."""
        ...


@runtime_checkable
class Drafter(Protocol):
    """What the runner calls. All requests of a step are handled in one call; nothing loops over nodes."""

    @property
    def features(self) -> Features: ...

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """Layers of the target whose inputs are wanted; only with features = "aux"."""
        ...

    def open(self, pages: int, page_size: int) -> PagedCache | None:
        """Called once: makes the drafter's own keys and values for as many pages as the target has, addressed by the same
        page tables. The engine copies and frees nothing in it. None for a drafter without attention."""
        ...

    def extend(
        self,
        states: Sequence[DraftState],
        counts: Sequence[int],
        tokens: Int[Tensor, " M"],
        features: Float[Tensor, "M F"] | None,
    ) -> None:
        """Adds `counts[b]` rows to states[b]: rows `rows` .. `rows + count - 1` are the pairs of tokens[j] (t_{i+1}) and
        features[j] (g_i), the requests one after the other. Used for prompts (in chunks) and after every step."""
        ...

    def draft(
        self,
        states: Sequence[DraftState],
        tree: Tree,
        rule: Rule,
        temperatures: Float[Tensor, " B"],
        uniforms: Uniforms,
    ) -> Draft:
        """Guesses for the tree behind t_{L-1} of every request, whose rows 0 .. L-2 are complete. Must leave `rows` and the
        rows themselves as they were. Temperature 0 means rule A for that request: its nodes must be point masses even when
        the others' rule is B or C (say so in `Draft.point`)."""
        ...

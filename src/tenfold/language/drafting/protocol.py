"""The drafter protocol of speculative decoding: all that the engine, the tree search and the server ask of a drafter.

Terminology
    target              the language model whose text is wanted, and whose distribution the emitted text has
    drafter             what proposes draft tokens: an EAGLE head, prompt lookup (n-gram drafting), both, or a class of yours
    draft token         a proposed token; it is a node of a tree
    proposal            the draft tokens of one step, with the distributions q that they were drawn from (`Draft`)
    tree                draft tokens that continue one another: a path from the root is one possible continuation
    root                node 0: the last emitted token, which is in the text but has not been through the target yet
    verification        one pass of the target over the root and all nodes (tree attention), then rejection sampling
    rejection sampling  accepts or rejects draft tokens so that the emitted text has the target's distribution
    accepted tokens     the draft tokens on the path that rejection sampling takes from the root
    bonus token         the token after the last accepted one, drawn from the target (or from what a rejection leaves of it)
    acceptance length   accepted tokens of a step; with the bonus token they are its emitted tokens
    TPC                 tokens per call: emitted tokens over passes of the target
    point mass          a draft token that was chosen, not drawn: the most likely one, or one that was looked up

A request's text is t_0 .. t_{L-1}, and t_{L-1} is the root. The target's row i is token t_i at position i; it has the feature
g_i (what the drafter asks for in `features`) and the distribution of t_{i+1}. The drafter's row i is the pair (t_{i+1}, g_i) at
position i and has the distribution of t_{i+2}; so L - 1 rows are complete before each step, and the last of them gives the
distribution of the root's children.

One step of the engine (decoding/step.py):
    draft, tree = shape.propose(drafter, states, rule, temperatures, uniforms)
    (the target verifies root and nodes; a nodes of a request are accepted, a + 1 tokens emitted)
    drafter.extend(states, counts, tokens, features)            with the target's own features, never the drafter's
After it, the drafter's rows are those of a fresh pass over the emitted text: rows written while drafting are dropped.

    B requests   N root and nodes   n nodes of the tree   P its inner nodes   M new rows of all requests together
    K height of the tree + 1   R children of a node at most   W drafter's vocabulary   V target's vocabulary   F feature width
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from tenfold.errors import UsageError
from tenfold.inference.pages import PagedCache, PageTable
from tenfold.language.drafting.tree import Tree
from tenfold.language.drafting.tree_batch import TreeBatch

Rule = Literal["top_k", "independent", "without_replacement"]
"""How siblings were chosen, which decides how they are verified (drafting/rejection.py): the most likely tokens; drawn
independently from q; drawn from q without replacement (Gumbel top-k, in the order of their keys)."""

Features = Literal["none", "aux", "hidden"]
"""What a drafter wants of the target: nothing, the inputs of `aux_layers` side by side, or the state after the last norm."""


@dataclass(frozen=True)
class Draft:
    """The proposal of one step, for all requests.

    tokens (B, n): the target's id of nodes 1..n in the tree's order; -1 where nothing is proposed (its descendants are -1 too).
    q (B, P, W): for every inner node in the tree's order, the distribution from which its children were chosen, after the
    drafter's own temperature; None when every node is a point mass (rule top_k, prompt lookup).
    ids (W): the target's id of every entry of q; None when they are the same.
    point (B, n): nodes that are point masses although the rule is another one (looked up in the text); None for none. Such a
    node does not count among the draws of its siblings.
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

    def spread(self, able: list[int], batch: int) -> Draft:
        """A proposal for the requests `able` as one for a whole batch: the others have no draft tokens."""

        def wide(part: Tensor | None, empty: float) -> Any:
            if part is None:
                return None
            whole = part.new_full((batch, *part.shape[1:]), empty)
            whole[able] = part
            return whole

        return Draft(wide(self.tokens, -1), wide(self.q, 0), self.ids, wide(self.point, False))


@dataclass
class DraftState:
    """One request as a drafter sees it. The engine owns everything but `carry`.

    tokens: the ids t_0 .. t_{L-1}, prompt and emitted; the same list that the engine appends to. Do not change it.
    table: the request's pages, shared by the target's KV cache and the drafter's own.
    rows: the drafter's rows that its pages hold; `extend` adds to it. The engine sets it back on preemption.
    carry: whatever the drafter keeps between steps (an EAGLE head: the last row's hidden state and logits).
    waiting: (tokens, features) of rows that were decoded while nothing was drafted; `extend` gets them before the next draft.
    """

    tokens: list[int]
    table: PageTable
    rows: int = 0
    carry: Any = None
    waiting: list[tuple[list[int], Tensor | None]] = field(default_factory=list)


@runtime_checkable
class Uniforms(Protocol):
    """Numbers in (0, 1) that depend on (request seed, emitted position, slot, index) only, never on the batch."""

    def __call__(self, slots: Int[Tensor, " S"], width: int) -> Float[Tensor, "B S width"]:
        """One row of `width` for every slot. A drafter's slots are the tree's inner nodes (node numbers)."""
        ...


DraftTrees = Tree | TreeBatch
"""The trees of a step's requests as verification sees them: one for all, or one for each. Both answer the same questions."""


@runtime_checkable
class Growth(Protocol):
    """How a dynamic tree grows (drafting/dynamic.py, `DynamicTree`)."""

    @property
    def top_k(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def height(self) -> int: ...


@dataclass(frozen=True)
class DeviceRows:
    """Where the rows of a step's requests are when only the device knows it: page tables, rows of a page, rows so far."""

    tables: Int[Tensor, "B P"]
    size: int
    starts: Int[Tensor, " B"]


@runtime_checkable
class ResidentDrafter(Protocol):
    """The drafter's part of a step that stays on the device (decoding/device_step.py): no shape and no branch depends on a
    number there, so that the step can be recorded as a CUDA graph. `DraftState.carry` is a tuple of two tensors."""

    def reserve(self, rows: int) -> None:
        """Makes what depends on the longest text (the rotations of its positions) before the first step."""
        ...

    def follows(self, tree: Tree) -> bool:
        """Whether this tree can be drafted so."""
        ...

    def draft_resident(
        self,
        carry: tuple[Tensor, Tensor],
        tree: Tree,
        rows: DeviceRows,
        *,
        rule: Rule,
        temperatures: Float[Tensor, " B"],
        greedy: bool,
        uniforms: Uniforms,
    ) -> Draft:
        """As `Drafter.draft`. carry: of all requests, stacked. greedy: some requests have temperature 0."""
        ...

    def extend_resident(
        self,
        tokens: Int[Tensor, "B K"],
        features: Float[Tensor, "B K F"],
        rows: DeviceRows,
        *,
        last: Int[Tensor, " B"],
    ) -> tuple[Tensor, Tensor]:
        """As `Drafter.extend`, with K rows of every request, of which those up to `last` count. Returns the new carry."""
        ...


@runtime_checkable
class Shape(Protocol):
    """What a step may draft: a `Tree`, a `HybridTree`, a `FittedTree` or a `DynamicTree`."""

    needs_distribution: ClassVar[bool]  # grows by the drafter's confidence
    needs_lookup: ClassVar[bool]  # has nodes that are looked up

    @property
    def in_company(self) -> Shape:
        """The shape that these texts have together with others, whatever the texts are."""
        ...

    @property
    def fixed(self) -> Tree | None:
        """The tree, where it is the same for every text."""
        ...

    @property
    def nodes(self) -> int:
        """Rows that pages must have room for behind the root."""
        ...

    def propose(
        self,
        drafter: Any,
        states: Sequence[DraftState],
        rule: Rule,
        temperatures: Float[Tensor, " B"],
        uniforms: Uniforms,
    ) -> tuple[Draft, DraftTrees]:
        """The drafter's proposal in this shape, and the trees that it stands in."""
        ...


Planner = Callable[[int, bool], tuple[Shape, Rule]]
"""(requests of a step, whether any is sampled) -> what to draft and how siblings are chosen."""


@runtime_checkable
class Drafter(Protocol):
    """What proposes draft tokens. `draft` is all that a class must have; inherit the rest, or say it better.

    All requests of a step are handled in one call. The engine calls nothing else of a drafter than what stands here.
    """

    features: Features = "none"
    aux_layers: tuple[int, ...] = ()  # layers of the target whose inputs are wanted; only with features = "aux"
    has_distribution: bool = False  # knows q, so that siblings can be drawn and dynamic trees can grow
    looks_up: bool = False  # `look_up` finds tokens beside those that `draft` proposes
    trained_for: str = ""  # fingerprint of the one target that it fits (drafting/weights.py); "" fits any
    planner: Planner | None = None  # what tree="auto" drafts on this machine; None: drafting/speculation.py

    def open(self, pages: int, page_size: int) -> PagedCache | None:
        """Called once: makes the drafter's own KV cache for as many pages as the target has, addressed by the same page
        tables. The engine copies and frees nothing in it. None for a drafter without attention."""
        return None

    def extend(
        self,
        states: Sequence[DraftState],
        counts: Sequence[int],
        tokens: Int[Tensor, " M"],
        features: Float[Tensor, "M F"] | None,
    ) -> None:
        """Adds `counts[b]` rows to states[b]: rows `rows` .. `rows + count - 1` are the pairs of tokens[j] (t_{i+1}) and
        features[j] (g_i), the requests one after the other. Used for prompts (in chunks) and after every step."""
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
        """Draft tokens for the tree behind t_{L-1} of every request, whose rows 0 .. L-2 are complete. Must leave `rows` and
        the rows themselves as they were. Temperature 0 means rule top_k for that request: its nodes must be point masses even
        when the others' rule is another one (say so in `Draft.point`)."""
        ...

    def draft_dynamic(self, states: Sequence[DraftState], growth: Growth) -> tuple[Draft, DraftTrees]:
        """Point masses in trees that grow by the drafter's confidence; only where it has a distribution."""
        raise UsageError(
            'a dynamic tree grows by a trained drafter\'s confidence; this one has none. Give tree="auto".'
        )

    def look_up(self, state: DraftState, count: int) -> list[int]:
        """Up to `count` tokens that may follow a request's text, found in the text itself."""
        return []

    def matched(self, state: DraftState) -> int:
        """How many of a request's last tokens, one after the other, are in its text before."""
        return 0

    def resident(self) -> ResidentDrafter | None:
        """Its part of steps that stay on the device; None for a drafter that needs the host between two steps."""
        return None

    def fingerprint(self) -> str:
        """What two processes must have in common for the rows of one to be those of the other."""
        return type(self).__name__

    def level_pass(self, batch: int, rows: int, text: int) -> Callable[[], object] | None:
        """A pass over `rows` inner nodes of a level behind `batch` texts of `text` tokens, to be timed
        (tuning/tree_costs.py); None for a drafter that makes no pass."""
        return None

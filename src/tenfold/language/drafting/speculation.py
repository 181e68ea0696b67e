"""How a request is speculated on: which drafter, which tree, which rule.

Speculation(tree="auto")                       as many nodes as the target's pass has room for, see `auto_tree`
Speculation(tree=Tree.chain(4), rule="A")
choose_drafter("ngram", target)                the drafter and a sentence about it
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tenfold.errors import UsageError, WeightsError
from tenfold.export.reading import ASSETS
from tenfold.export.weights import load
from tenfold.kernels import decode
from tenfold.kernels.formats import Format, entry, memory_bound_rows, quickest
from tenfold.language.drafting.drafter import EagleDrafter
from tenfold.language.drafting.dynamic import DynamicTree
from tenfold.language.drafting.ngram import FittedTree, HybridDrafter, HybridTree, NgramDrafter
from tenfold.language.drafting.protocol import Drafter, Rule
from tenfold.language.drafting.tree import Tree
from tenfold.language.drafting.tree_drafter import TreeDrafter
from tenfold.language.drafting.weights import check_target
from tenfold.language.models.prepare import Target, pack_linears

# The best trees of 16 nodes by `tree_search` for the shipped drafter, on prompts that were held back from its training.
SIXTEEN = Tree.from_paths(
    [
        *([0], [1], [2], [3], [4], [5], [0, 0], [0, 1], [0, 2], [1, 0], [2, 0]),
        *([0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0, 0]),
    ]
)
TEN = Tree.from_paths([[0], [1], [2], [3], [4], [0, 0], [0, 1], [1, 0], [0, 0, 0], [0, 0, 0, 0]])
TEN_AND_SIX = HybridTree.of(TEN, 6)
LOOK_UP = Tree.chain(6)
NONE = Tree.chain(0)
SHIPPED = ASSETS / "eagle3-smollm2-135m.safetensors"

# What "auto" drafts, the largest first that fits: all requests' roots and nodes stay within the free rows. Chosen as above.
# Looking up has a place in a single text's tree only: all requests of a batch take one shape, and what is found in one text
# is missing in the others (two requests with three nodes each: 1.61 times plain decoding drafted, 1.46 with look-up).
ONE, THREE = Tree.chain(1), Tree.from_paths([[0], [1], [0, 0]])
SEVEN = Tree.from_paths([[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0]])
DRAFTED = (SIXTEEN, SEVEN, THREE, ONE)
HYBRIDS = (
    FittedTree(TEN_AND_SIX, TEN_AND_SIX, SIXTEEN),
    FittedTree(HybridTree.of(THREE, 4), HybridTree.of(ONE, 6), SEVEN),
    FittedTree(HybridTree.of(ONE, 2), HybridTree.of(ONE, 2), THREE),
)
LOOKED_UP = (LOOK_UP, Tree.chain(3), Tree.chain(1))

Shape = Tree | DynamicTree
Planner = Callable[[int, bool], tuple[Shape, Rule]]


@dataclass(frozen=True)
class Speculation:
    """tree: the shape of every draft, "auto", or "dynamic" (drafting/dynamic.py). rule: how siblings are chosen when something
    is sampled; "auto" is C for a drafter with a law of its own. planner: (batch, sampled) -> tree and rule, for a table
    measured on this machine. simulated_accept: a node stands by a seeded coin of this probability instead of the target's
    verdict, to time shapes with weights that guess nothing; results say `simulated`, and no server takes it."""

    tree: Shape | Literal["auto", "dynamic"] = "auto"
    rule: Rule | Literal["auto"] = "auto"
    planner: Planner | None = None
    simulated_accept: float | None = None

    def __post_init__(self) -> None:
        share = self.simulated_accept
        if share is not None and not 0 <= share <= 1:
            raise UsageError(f"simulated_accept = {share}: allowed are None or a probability from 0 to 1.")

    def plan(self, batch: int, sampled: bool, drafter: Drafter | None) -> tuple[Shape, Rule]:
        """What the next step does."""
        if drafter is None:
            return NONE, "A"
        if self.planner is not None:
            return self.planner(batch, sampled)
        trained = drafter.features != "none"
        if self.tree == "dynamic" or isinstance(self.tree, DynamicTree):
            if not trained:
                raise UsageError(
                    "a dynamic tree grows by a trained drafter's confidence; look-up has none. Allowed: auto."
                )
            return (self.tree if isinstance(self.tree, DynamicTree) else DynamicTree()), "A"
        tree = self.tree if isinstance(self.tree, Tree) else auto_tree(batch, drafter)
        if not sampled or not trained:
            return tree, "A"
        return tree, ("C" if self.rule == "auto" else self.rule)

    def largest(self, drafter: Drafter | None) -> int:
        """Nodes of the largest tree that `plan` may give."""
        if self.planner is None:
            return self.plan(1, False, drafter)[0].nodes
        return max(self.planner(batch, sampled)[0].nodes for batch in range(1, 65) for sampled in (False, True))


def auto_tree(batch: int, drafter: Drafter) -> Tree:
    """The largest known tree with which a batch stays within the rows that cost little, no tree where none does: so that
    speculation by default does not make a batch slower."""
    rows = getattr(drafter, "free_rows", 8)
    if isinstance(drafter, HybridDrafter) and batch == 1:
        for shape in HYBRIDS:
            if shape.tree.tree.nodes + 1 <= rows:
                return drafter.add(shape)
    shapes = DRAFTED if drafter.features != "none" else LOOKED_UP
    return next((tree for tree in shapes if batch * (tree.nodes + 1) <= rows), NONE)


def choose_drafter(choice: str | Path | None, target: Target) -> tuple[Drafter | None, str]:
    """The drafter, and a sentence that says which and why. Raises UsageError for an unknown one, WeightsError for one that
    belongs to another target."""
    drafter, note = _choose(choice, target)
    if isinstance(drafter, NgramDrafter | TreeDrafter | HybridDrafter):
        drafter.free_rows = memory_bound_rows(target.form, target.model.embedding.weight.device.type)
    return drafter, note


def _choose(choice: str | Path | None, target: Target) -> tuple[Drafter | None, str]:
    if choice is None or str(choice) == "none":
        return None, "no drafter: the target decodes alone"
    if str(choice) == "ngram":
        return NgramDrafter(), "drafter ngram: looks up the text itself"
    if str(choice) == "auto":
        return _shipped(target)
    path = Path(choice)
    if not path.exists():
        raise UsageError(f"drafter {str(choice)!r}: no such file or folder. Allowed: auto, ngram, none, or a path.")
    return _trained(path, target), f"drafter {path}"


def _trained(path: Path, target: Target) -> TreeDrafter:
    network = load(path)
    if not isinstance(network, EagleDrafter):
        raise WeightsError(
            f"{path} is a {type(network).__name__}, not a drafter. Allowed: auto, ngram, none, or a drafter."
        )
    check_target(network.config, target.source, path)
    device = target.model.embedding.weight.device
    if device.type != "cpu":
        return TreeDrafter(network.to(device, entry(target.form).dtype), target.model)
    pack_linears(network, drafter_format(target.form))
    return TreeDrafter(network, target.model)


def drafter_format(target: Format) -> Format:
    """A drafter's number format beside a target's: its logits only choose what is checked, so 8 bits are exact enough whatever
    the target has, and half the bytes. A processor that cannot multiply them quickly has the quickest format that it can."""
    if entry(target).activations == "float32":
        return "fp32"
    return "int8" if decode.refusal() is None else quickest()


def _shipped(target: Target) -> tuple[Drafter | None, str]:
    """The drafter in the package that was trained for this target, together with prompt look-up; else look-up alone."""
    for path in sorted(ASSETS.glob("eagle*.safetensors")):
        with contextlib.suppress(WeightsError):
            own = _trained(path, target)
            if own.device.type != "cpu":  # look-up needs the host between two steps (decoding/device_step.py)
                return own, f"drafter {path.stem}: trained for this target"
            return HybridDrafter(own, NgramDrafter()), f"drafter {path.stem} with look-up: trained for this target"
    return NgramDrafter(), (
        "drafter ngram: none was trained for this target (tenfold train eagle3-smollm2 --target TARGET trains one)"
    )

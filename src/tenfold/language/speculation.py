"""How a request is speculated on: which drafter, which tree, which rule.

Speculation(tree="auto")                       16 nodes for a trained drafter, a chain of 6 for prompt look-up
Speculation(tree=Tree.chain(4), rule="A")
choose_drafter("ngram", target)                the drafter and a sentence about it
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tenfold.errors import UsageError
from tenfold.language.draft import Drafter, Rule
from tenfold.language.llama import Llama
from tenfold.language.tree import Tree
from tenfold.registry import Registry

# The drafters that can be named, or recognised in a file; each is (target, path or None) -> Drafter.
DRAFTERS = Registry("drafter")

SIXTEEN = Tree.from_paths(
    [
        *([0], [1], [2], [3], [0, 0], [0, 1], [0, 2], [1, 0], [2, 0]),
        *([0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0, 0]),
    ]
)
LOOK_UP = Tree.chain(6)
NONE = Tree.chain(0)

Planner = Callable[[int, bool], tuple[Tree, Rule]]


@dataclass(frozen=True)
class Speculation:
    """tree: the shape of every draft, or "auto". rule: how siblings are chosen when something is sampled; "auto" is C for a
    drafter with a law of its own. planner: (batch, sampled) -> tree and rule, for a table measured on this machine."""

    tree: Tree | Literal["auto"] = "auto"
    rule: Rule | Literal["auto"] = "auto"
    planner: Planner | None = None

    def plan(self, batch: int, sampled: bool, drafter: Drafter | None) -> tuple[Tree, Rule]:
        """What the next step does."""
        if drafter is None:
            return NONE, "A"
        if self.planner is not None:
            return self.planner(batch, sampled)
        trained = drafter.features != "none"
        tree = self.tree if isinstance(self.tree, Tree) else (SIXTEEN if trained else LOOK_UP)
        if not sampled or not trained:
            return tree, "A"
        return tree, ("C" if self.rule == "auto" else self.rule)

    def largest(self, drafter: Drafter | None) -> int:
        """Nodes of the largest tree that `plan` may give."""
        if self.planner is None:
            return self.plan(1, False, drafter)[0].nodes
        return max(self.planner(batch, sampled)[0].nodes for batch in range(1, 65) for sampled in (False, True))


def choose_drafter(choice: str | Path | None, target: Llama) -> tuple[Drafter | None, str]:
    """The drafter, and a sentence that says which and why. Raises UsageError for an unknown one."""
    if choice is None or str(choice) == "none":
        return None, "no drafter: the target decodes alone"
    if str(choice) in DRAFTERS:
        return DRAFTERS.load(str(choice))(target, None), f"drafter {choice}"
    if str(choice) == "auto":
        return None, "no drafter for this target is installed: the target decodes alone"
    raise UsageError(
        f"drafter {str(choice)!r}: allowed are auto, none, {', '.join(e.name for e in DRAFTERS)} or a path."
    )

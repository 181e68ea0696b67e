"""Configuration of speculative decoding: which drafter, which draft tree, which rule to choose siblings.

    Speculation(tree="auto")                       as many nodes as this machine verifies for little more than the price of one
    Speculation(tree=Tree.chain(4), rule="top_k")
    choose_drafter("ngram", target)                the drafter and a sentence about it

A pass over a few rows is bound by memory: it costs what reading the weights costs. How many rows those are depends on the
machine and the number format, so the trees of "auto" are in tables, one for each kind of machine (drafting/dispatch.py). All
requests' roots and nodes stay within these rows, and where not even one node each has room nothing is drafted, so that
speculation by default does not make a batch slower. A chain from prompt lookup has a place in a single text's tree only: all
requests of a batch take one shape, and what is found in one text is missing in the others (two
requests with three nodes each: 1.61 times plain decoding drafted, 1.46 with prompt lookup).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from tenfold.errors import UsageError, WeightsError
from tenfold.export.reading import ASSETS
from tenfold.kernels import decode
from tenfold.kernels.formats import Format, entry, memory_bound_rows, quickest
from tenfold.language.drafting.dispatch import Proposes, kind_of, machine_class, shipped
from tenfold.language.drafting.dynamic import DynamicTree
from tenfold.language.drafting.ngram import HybridDrafter, NgramDrafter
from tenfold.language.drafting.protocol import Drafter, Planner, Rule, Shape
from tenfold.language.drafting.tree import Tree
from tenfold.language.drafting.tree_drafter import TreeDrafter
from tenfold.language.drafting.weights import check_target, load_drafter
from tenfold.language.models.prepare import Target, pack_linears

NONE = Tree.chain(0)
SHIPPED = ASSETS / "eagle3-smollm2-135m.safetensors"


@dataclass(frozen=True)
class Speculation:
    """tree: the shape of every draft, "auto", or "dynamic" (drafting/dynamic.py). rule: how siblings are chosen when something
    is sampled; "auto" is without_replacement for a drafter with a distribution of its own. planner: (batch, sampled) -> tree
    and rule, for a table measured on this machine. simulated_accept: a draft token is accepted by a seeded coin of this
    probability instead of the target's verdict, to time shapes with random weights; results say `simulated`, and no server
    takes it."""

    tree: Shape | Literal["auto", "dynamic"] = "auto"
    rule: Rule | Literal["auto"] = "auto"
    planner: Planner | None = None
    simulated_accept: float | None = None

    def __post_init__(self) -> None:
        share = self.simulated_accept
        if share is not None and not 0 <= share <= 1:
            raise UsageError(f"simulated_accept = {share}: allowed are None or a probability from 0 to 1.")

    def plan(self, batch: int, sampled: bool, drafter: Drafter | None, seeded: bool = False) -> tuple[Shape, Rule]:
        """What the next step does. seeded: something is sampled with a seed of its own. The tree decides which draws are made,
        so it may then depend neither on how many requests there are nor on which of them is alone."""
        if not seeded:
            return self._plan(batch, sampled, drafter)
        shape, rule = self._plan(1, sampled, drafter)
        return shape.in_company, rule

    def _plan(self, batch: int, sampled: bool, drafter: Drafter | None) -> tuple[Shape, Rule]:
        if drafter is None:
            return NONE, "top_k"
        if self.planner is not None:
            return self.planner(batch, sampled)
        shape, rule = self._shape(batch, sampled, drafter)
        if shape.needs_distribution:
            if not drafter.has_distribution:
                raise UsageError(
                    "a dynamic tree grows by a trained drafter's confidence; prompt lookup has none. Allowed: auto."
                )
            return shape, "top_k"
        if not sampled or not drafter.has_distribution:
            return shape, "top_k"
        return shape, (rule if self.rule == "auto" else self.rule)

    def _shape(self, batch: int, sampled: bool, drafter: Drafter) -> tuple[Shape, Rule]:
        if self.tree == "auto":
            return (drafter.planner or default_planner(kind_of(drafter)))(batch, sampled)
        return DynamicTree() if self.tree == "dynamic" else self.tree, "without_replacement"

    def largest(self, drafter: Drafter | None) -> int:
        """Nodes of the largest tree that `plan` may give."""
        if self.planner is None:
            return self.plan(1, False, drafter)[0].nodes
        return max(self.planner(batch, sampled)[0].nodes for batch in range(1, 65) for sampled in (False, True))


@lru_cache(maxsize=3)
def default_planner(kind: Proposes) -> Planner:
    """The trees of a drafter that was given to the engine without a table: those of bf16 on a CPU with AVX512."""
    return shipped("avx512").for_weights("bf16").planner_of(kind)


def with_trees(drafter: Drafter, form: Format, device: torch.device) -> Drafter:
    """The drafter with the table of this machine for a target of this format."""
    rows = memory_bound_rows(form, device.type)
    drafter.planner = shipped(machine_class(device)).planner(drafter, form, rows)
    return drafter


def choose_drafter(choice: str | Path | None, target: Target) -> tuple[Drafter | None, str]:
    """The drafter, and a sentence that says which and why. Raises UsageError for an unknown one, WeightsError for one that
    belongs to another target."""
    drafter, note = _choose(choice, target)
    if drafter is not None:
        with_trees(drafter, target.form, target.model.embedding.weight.device)
    return drafter, note


def _choose(choice: str | Path | None, target: Target) -> tuple[Drafter | None, str]:
    if choice is None or str(choice) == "none":
        return None, "no drafter: plain decoding"
    if str(choice) == "ngram":
        return NgramDrafter(), "drafter ngram: prompt lookup in the text itself"
    if str(choice) == "auto":
        return _shipped(target)
    path = Path(choice)
    if not path.exists():
        raise UsageError(f"drafter {str(choice)!r}: no such file or folder. Allowed: auto, ngram, none, or a path.")
    return _trained(path, target), f"drafter {path}"


def _trained(path: Path, target: Target) -> TreeDrafter:
    network = load_drafter(path, "auto, ngram, none, or a drafter")
    check_target(network.config, target.source, path)
    device = target.model.embedding.weight.device
    if device.type != "cpu":
        return TreeDrafter(network.to(device, entry(target.form).dtype), target.model)
    pack_linears(network, drafter_format(target.form))
    return TreeDrafter(network, target.model)


def drafter_format(target: Format) -> Format:
    """A drafter's number format beside a target's: its logits only choose what is verified, so 8 bits are exact enough whatever
    the target has, and half the bytes. A processor that cannot multiply them quickly has the quickest format that it can."""
    if entry(target).activations == "float32":
        return "fp32"
    return "int8" if decode.refusal() is None else quickest()


def _shipped(target: Target) -> tuple[Drafter | None, str]:
    """The drafter in the package that was trained for this target, together with prompt lookup; else prompt lookup only."""
    for path in sorted(ASSETS.glob("eagle*.safetensors")):
        with contextlib.suppress(WeightsError):
            own = _trained(path, target)
            if own.device.type != "cpu":  # prompt lookup needs the host between two steps (decoding/device_step.py)
                return own, f"drafter {path.stem}: trained for this target"
            return HybridDrafter(
                own, NgramDrafter()
            ), f"drafter {path.stem} with prompt lookup: trained for this target"
    return NgramDrafter(), (
        "drafter ngram: none was trained for this target (tenfold train eagle3-smollm2 --target TARGET trains one)"
    )

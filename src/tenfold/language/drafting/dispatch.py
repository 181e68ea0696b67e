"""Dispatch tables of speculative decoding: which draft tree for which batch, number format and temperature (dispatch.json).

    table = Dispatcher.load("dispatch.json")                    written by `tenfold language tree` for one machine
    table = shipped(machine_class(device))                      measured here: assets/trees-avx2.json, -avx512.json, -gpu.json
    drafter.planner = table.planner(drafter, "bf16")            what tree="auto" asks before every step

An entry is for batches up to `batch`, from the next smaller entry's on. `weights` "" is for formats without an entry of their
own, `proposes` "" for every drafter. Three entries that differ in `text` are a shape that is fitted to a single text
(drafting/hybrid_trees.py): for several requests at once, for a text whose last two tokens it had before, for another one.
`tpc` (tokens per call) and `ms` (milliseconds of a step) are null where the table's note does not say that they were measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from tenfold.config import from_dict, require
from tenfold.data.atomic import write_atomic
from tenfold.errors import UsageError, WeightsError
from tenfold.export.reading import ASSETS, read_json
from tenfold.kernels import decode
from tenfold.kernels.formats import FORMATS
from tenfold.language.drafting.hybrid_trees import FittedTree, HybridTree
from tenfold.language.drafting.protocol import Drafter, Planner, Rule, Shape
from tenfold.language.drafting.tree import Tree

VERSION = 1
NOTHING = Tree.chain(0)
OLD_RULES: dict[str, Rule] = {"A": "top_k", "B": "independent", "C": "without_replacement"}  # names before version 0.2
MachineClass = Literal["avx2", "avx512", "gpu"]
Proposes = Literal["", "lookup", "model", "model and lookup"]
OPTIONAL = ("proposes", "text")  # left out of a file where they are empty


@dataclass(frozen=True)
class Entry:
    """The plan for batches up to `batch` (of the next smaller entry's size on)."""

    batch: int
    temperature: Literal["0", ">0"]
    weights: str
    rule: Rule
    paths: list[list[int]]
    looked_up: int
    tpc: float | None
    ms: float | None
    proposes: Proposes = ""
    text: Literal["", "known", "unknown"] = ""

    @property
    def nodes(self) -> int:
        """Draft tokens of a request."""
        return len(self.paths) + self.looked_up

    @property
    def shape(self) -> Tree | HybridTree:
        own = Tree.from_paths(self.paths)
        return HybridTree.of(own, self.looked_up) if self.looked_up else own


def entry_of(values: Mapping[str, Any]) -> Entry:
    """An entry as a file holds it. Raises UsageError for a field, rule or tree that is none."""
    entry = from_dict(Entry, {**values, "rule": OLD_RULES.get(values["rule"], values["rule"])}, "entry")
    require(entry.batch >= 1, "entry.batch", entry.batch, "a whole number >= 1")
    require(entry.looked_up >= 0, "entry.looked_up", entry.looked_up, "a whole number >= 0")
    known = ("", *FORMATS)
    require(entry.weights in known, "entry.weights", entry.weights, '"" or one of ' + ", ".join(FORMATS))
    for name in ("tpc", "ms"):
        figure = getattr(entry, name)
        require(figure is None or figure > 0, f"entry.{name}", figure, "null or a number above 0")
    _ = entry.shape
    return entry


def check_entries(entries: Sequence[Entry]) -> None:
    """Raises UsageError for two entries of one case, or a fitted shape that lacks a part or room for it."""
    groups: dict[tuple[object, ...], dict[str, Entry]] = {}
    for e in entries:
        group = groups.setdefault((e.batch, e.temperature, e.weights, e.proposes), {})
        if e.text in group:
            raise UsageError(f"two entries for batch {e.batch}, temperature {e.temperature}, weights {e.weights!r}.")
        group[e.text] = e
    for (batch, temperature, *_), group in groups.items():
        where = f"the entries for batch {batch}, temperature {temperature}"
        if set(group) not in ({""}, {"", "known", "unknown"}):
            raise UsageError(f'{where} have text = {sorted(group)}: allowed are "" alone, or "", known and unknown.')
        if len(group) > 1 and group["unknown"].looked_up:
            raise UsageError(f"{where}: a text that has nothing to look up has looked_up 0.")
        if any(e.nodes > group[""].nodes for e in group.values()):
            raise UsageError(f'{where}: the shape of text "" must have the most nodes, for which room is made.')


@dataclass(frozen=True)
class Dispatcher:
    """Which tree for which batch, on one kind of machine, for one target and drafter ("" is any)."""

    target: str
    drafter: str
    machine: str
    entries: tuple[Entry, ...]
    note: str = ""

    @staticmethod
    def load(path: Path) -> Dispatcher:
        """Raises WeightsError for a file that is not one, or of another version."""
        values = read_json(path)
        try:
            if values["version"] != VERSION:
                raise WeightsError(f"{path}: version {values['version']}; this tenfold reads version {VERSION}.")
            entries = tuple(entry_of(entry) for entry in values["entries"])
            check_entries(entries)
            names = values["target"], values["drafter"], values["machine"]
            if not entries or not all(isinstance(name, str) for name in names):
                raise UsageError("target, drafter and machine are texts, and there is at least one entry.")
            return Dispatcher(*names, entries, values.get("note", ""))
        except (KeyError, TypeError, AttributeError, UsageError) as error:
            raise WeightsError(f"{path} is not a dispatch table ({error}). Make one: tenfold language tree") from error

    def save(self, path: Path) -> None:
        entries = [{k: v for k, v in asdict(e).items() if v or k not in OPTIONAL} for e in self.entries]
        values = {
            "version": VERSION,
            "target": self.target,
            "drafter": self.drafter,
            "machine": self.machine,
            **({"note": self.note} if self.note else {}),
            "entries": entries,
        }
        write_atomic(path, (json.dumps(values, indent=2) + "\n").encode())

    def for_weights(self, weights: str) -> Dispatcher:
        """The entries of a number format: its own where there are any, else those of every format."""
        own = tuple(e for e in self.entries if e.weights == weights)
        return replace(self, entries=own or tuple(e for e in self.entries if not e.weights))

    def entry(self, batch: int, sampled: bool, rows: int | None = None) -> Entry:
        """The entry of the smallest measured batch that is not below this one; beyond the largest one without draft tokens.
        rows: a later one, while a batch has more roots and nodes than these."""
        wanted = ">0" if sampled else "0"
        fitting = sorted((e for e in self.entries if e.temperature == wanted and not e.text), key=lambda e: e.batch)
        if not fitting:
            raise UsageError(f"the dispatch table has no entry for temperature {wanted}.")
        least = [e for e in fitting if e.batch >= batch]
        if not least:
            return replace(fitting[-1], batch=batch, rule="top_k", paths=[], looked_up=0, tpc=None, ms=None)
        return next((e for e in least if rows is None or batch * (e.nodes + 1) <= rows), least[-1])

    def planner(self, drafter: Drafter, weights: str | None = None, rows: int | None = None) -> Planner:
        """What `Speculation(planner=...)` takes, and what a drafter keeps as `planner`. Trees are made once, so switching costs
        nothing. weights: the target's number format; None takes every entry. rows: the memory-bound ones of that format, which
        bound what is drafted for a format that the table does not know. Raises UsageError for nodes from prompt lookup
        where the drafter looks nothing up."""
        table = self if weights is None else self.for_weights(weights)
        kind = kind_of(drafter)
        if not drafter.looks_up and any(e.looked_up for e in table.entries if e.proposes in ("", kind)):
            raise UsageError(
                "the dispatch table has nodes from prompt lookup: it needs a drafter with prompt lookup (HybridDrafter)."
            )
        return table.planner_of(kind, rows)

    def planner_of(self, kind: Proposes, rows: int | None = None) -> Planner:
        """`planner` for a kind of drafter."""
        entries = tuple(e for e in self.entries if e.proposes in ("", kind))
        table, shapes = replace(self, entries=entries), {}
        for key in {(e.batch, e.temperature) for e in entries}:
            shapes[key] = _shape([e for e in entries if (e.batch, e.temperature) == key])

        def plan(batch: int, sampled: bool) -> tuple[Shape, Rule]:
            entry = table.entry(batch, sampled, rows)
            return shapes.get((entry.batch, entry.temperature), NOTHING), entry.rule

        return plan


def _shape(entries: Sequence[Entry]) -> Shape:
    """The shape of the entries of one batch size and temperature."""
    by_text = {entry.text: entry.shape for entry in entries}
    if len(by_text) == 1:
        return by_text[""]
    tree, known = (HybridTree.of(by_text[text].own, by_text[text].looked_up) for text in ("", "known"))
    assert not by_text["unknown"].looked_up, "a text that has nothing to look up is drafted by the model"
    return FittedTree(tree, known, by_text["unknown"].own)


def kind_of(drafter: Drafter) -> Proposes:
    """Which entries of a table are for this drafter."""
    if not drafter.has_distribution:
        return "lookup"
    return "model and lookup" if drafter.looks_up else "model"


def machine_class(device: torch.device) -> MachineClass:
    """The shipped table that is for this machine. A processor without compiled passes takes that of AVX512."""
    if device.type != "cpu":
        return "gpu"
    return "avx2" if decode.lanes() == 256 else "avx512"


@lru_cache(maxsize=3)
def shipped(machine: MachineClass) -> Dispatcher:
    """The table in the package that was measured on this kind of machine."""
    return Dispatcher.load(ASSETS / f"trees-{machine}.json")

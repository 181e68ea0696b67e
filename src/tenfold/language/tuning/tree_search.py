"""Which tree to draft: from how often each rank is accepted, and from what a step costs on this machine.

    table = acceptance(replayed.ranks, tree, width=8)           P[k, r]: rank r is accepted at level k, given its parent was
    paths, expected = best_paths(table, 60)                     the best tree of every size: its first n paths
    costs = measure_costs(llm, batches=(1, 8))                  milliseconds of a step by batch and tree
    entries = search(replayed, costs, ...)                      the fastest plan of every batch size
    Dispatcher.load("dispatch.json").planner(drafter)           what the engine asks before every step

The value of a node is the product of P along its path, and E[TPC] = 1 + the sum of the values (Sequoia, arXiv 2402.12374,
without its budget of depth): taking the most valuable child of what is there already gives the best tree of every size,
if the levels are independent. They are not quite, so the tokens per call that decide are those of the replay, which is
exact; the product only proposes the shapes. No tree at all is a legal winner.

    A rows   K levels   R ranks
"""

from __future__ import annotations

import heapq
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenfold.data.atomic import write_atomic
from tenfold.errors import UsageError, WeightsError
from tenfold.export.reading import read_json
from tenfold.kernels.machine import simd
from tenfold.language.decoding.engine import LLM
from tenfold.language.distillation.replay import accepted_lengths
from tenfold.language.drafting.ngram import HybridDrafter, HybridTree
from tenfold.language.drafting.protocol import Drafter, Rule
from tenfold.language.drafting.speculation import Speculation
from tenfold.language.drafting.tree import Tree
from tenfold.language.sampling.sampling import SamplingParams
from tenfold.language.tuning.measure import Replayed, engine_tpc

VERSION = 1
SIZES = (2, 4, 6, 8, 12, 16, 20, 24, 32, 48)  # nodes of the drafter's own tree that are tried
CHAINS = (0, 4, 8)  # looked-up tokens beside it


def acceptance(ranks: Sequence[Int[Tensor, "_ k"]], tree: Tree, width: int) -> Float[Tensor, "k r"]:
    """P[k, r] over the steps of the closed loop with `tree`: how often the true token is the r-th guess at level k, given
    that it was among the first `width` at the levels before."""
    depth = ranks[0].shape[1]
    hits, parents = torch.zeros(depth, width), torch.zeros(depth)
    for table in ranks:
        lengths, at = accepted_lengths(tree, table).tolist(), 0
        starts = []
        while at < len(table) - 1:
            starts.append(at)
            at += lengths[at] + 1
        visited = table[starts]
        alive = torch.ones(len(visited), dtype=torch.bool)
        for k in range(depth):
            parents[k] += alive.sum()
            hits[k] += torch.bincount(visited[alive, k].clamp_max(width), minlength=width + 1)[:width]
            alive &= visited[:, k] < width
    return hits / parents.clamp_min(1)[:, None]


def best_paths(table: Float[Tensor, "k r"], size: int, depth: int | None = None) -> tuple[list[list[int]], list[float]]:
    """Rank paths in the order in which they enter the tree, and E[TPC] of the tree of the first n, for n = 0 .. size."""
    p = table.tolist()
    depth = min(depth or len(p), len(p))
    heap: list[tuple[float, list[int], float]] = [(-p[0][0], [0], 1.0)]
    paths: list[list[int]] = []
    expected = [1.0]
    while heap and len(paths) < size:
        value, path, parent = heapq.heappop(heap)
        paths.append(path)
        expected.append(expected[-1] - value)
        if len(path) < depth:
            heapq.heappush(heap, (value * p[len(path)][0], [*path, 0], -value))
        if path[-1] + 1 < len(p[0]):
            rank = path[-1] + 1
            # Never above the sibling before it: a tree holds a rank only with the better ones.
            following = min(parent * p[len(path) - 1][rank], -value)
            heapq.heappush(heap, (-following, [*path[:-1], rank], parent))
    return paths, expected


@dataclass(frozen=True)
class Entry:
    """The plan for batches up to `batch` (of the next smaller entry's size on)."""

    batch: int
    temperature: str  # "0" or ">0"
    weights: str
    rule: Rule
    paths: list[list[int]]
    looked_up: int
    tpc: float
    ms: float

    @property
    def shape(self) -> Tree | HybridTree:
        own = Tree.from_paths(self.paths)
        return HybridTree.of(own, self.looked_up) if self.looked_up else own


class CostTable:
    """Milliseconds of the parts of a step, measured at some widths and interpolated: verify[batch][width] the target's pass,
    level[batch][rows] one pass of the drafter, host[batch] everything else with and without a tree."""

    def __init__(
        self,
        verify: Mapping[int, Mapping[int, float]],
        level: Mapping[int, Mapping[int, float]],
        host: Mapping[int, tuple[float, float]],
        weights: str = "",
    ) -> None:
        self.verify, self.level, self.host, self.weights = verify, level, host, weights

    def ms(self, batch: int, own: Tree, looked_up: int = 0) -> float:
        """A step with the drafter's tree and a looked-up chain; no node at all is plain decoding."""
        nodes = own.nodes + looked_up
        plain, drafting = self.host[batch]
        verify = interpolate(self.verify[batch], nodes + 1)
        if nodes == 0:
            return verify + plain
        levels = sum(interpolate(self.level[batch], len(level.inner)) for level in own.levels[1:])
        return verify + levels + drafting


def interpolate(points: Mapping[int, float], at: int) -> float:
    """Piecewise linear through measured points; beyond the last one along its last slope."""
    known = sorted(points)
    if at <= known[0] or len(known) == 1:
        return points[known[0]]
    high = next((x for x in known if x >= at), known[-1])
    low = known[known.index(high) - 1]
    return points[low] + (points[high] - points[low]) * (at - low) / (high - low)


def search(
    replayed: Replayed,
    costs: CostTable,
    temperature: str,
    lookups: Sequence[int] = CHAINS,
    sizes: Sequence[int] = SIZES,
    width: int = 8,
) -> list[Entry]:
    """The plan with the most tokens per millisecond for every batch of the cost table, plain decoding among them."""
    table = acceptance(replayed.ranks, Tree.chain(2), width)
    candidates: dict[tuple[tuple[int, ...], ...], Tree] = {}
    for depth in range(1, len(table) + 1):
        paths, _ = best_paths(table, max(sizes), depth)
        for size in sizes:
            own = Tree.from_paths(paths[:size])
            candidates[tuple(map(tuple, own.paths))] = own
    every = range(len(replayed.answers))
    kept = replayed.kept or list(every)
    scored = [(Tree.chain(0), 0, 1.0)]
    for own in candidates.values():
        for looked_up in lookups:
            shape = HybridTree.of(own, looked_up) if looked_up else own
            scored.append((own, looked_up, replayed.tpc(shape, kept)))
    entries = []
    for batch in sorted(costs.verify):
        own, looked_up, tpc = max(scored, key=lambda c: c[2] / costs.ms(batch, c[0], c[1]))
        ms = costs.ms(batch, own, looked_up)
        entries.append(Entry(batch, temperature, costs.weights, "A", own.paths, looked_up, tpc, ms))
    return entries


def rules_at_temperature(
    llm: LLM, entries: Sequence[Entry], prompts: Sequence[Sequence[int]], max_tokens: int = 64
) -> list[tuple[Rule, dict[Rule, float]]]:
    """For each entry the rule that gives more tokens per call at temperature 1 through the engine, and the figures of A and C.
    Equal shapes are measured once."""
    known: dict[str, tuple[Rule, dict[Rule, float]]] = {}
    kept = llm.engine.speculation
    params = [SamplingParams(temperature=1.0, seed=i, max_tokens=max_tokens) for i in range(len(prompts))]
    rules: tuple[Rule, ...] = ("A", "C")
    result = []
    for entry in entries:
        key = json.dumps([entry.paths, entry.looked_up])
        if key not in known:
            shape = entry.shape
            if isinstance(shape, HybridTree):
                assert isinstance(llm.drafter, HybridDrafter)
                shape = llm.drafter.add(shape)
            figures: dict[Rule, float] = {}
            for rule in rules:
                llm.engine.speculation = Speculation(tree=shape, rule=rule)
                figures[rule] = engine_tpc(llm.generate(prompts, params)) if entry.paths else 1.0
            known[key] = (max(rules, key=lambda r: figures[r]), figures)
        result.append(known[key])
    llm.engine.speculation = kept
    return result


def halves(replayed: Replayed) -> tuple[Replayed, Replayed]:
    """Every second answer: one half to choose with, the other to check."""
    parts = []
    for start in (0, 1):
        take = range(start, len(replayed.answers), 2)
        rows = ([getattr(replayed, name)[i] for i in take] for name in ("answers", "ranks", "looked_up"))
        parts.append(Replayed(*rows))
    return parts[0], parts[1]


@dataclass(frozen=True)
class Dispatcher:
    """dispatch.json: which tree for which batch, on one machine, for one target and drafter."""

    target: str
    drafter: str
    machine: str
    entries: tuple[Entry, ...]

    @staticmethod
    def load(path: Path) -> Dispatcher:
        """Raises WeightsError for a file that is not one, or of another version."""
        values = read_json(path)
        try:
            if values["version"] != VERSION:
                raise WeightsError(f"{path}: version {values['version']}; this tenfold reads version {VERSION}.")
            entries = tuple(Entry(**entry) for entry in values["entries"])
            for entry in entries:
                _ = entry.shape
            return Dispatcher(values["target"], values["drafter"], values["machine"], entries)
        except (KeyError, TypeError, UsageError) as error:
            raise WeightsError(f"{path} is no dispatch table ({error}). Make one: tenfold language tree") from error

    def save(self, path: Path) -> None:
        values = {
            "version": VERSION,
            "target": self.target,
            "drafter": self.drafter,
            "machine": self.machine,
            "entries": [asdict(entry) for entry in self.entries],
        }
        write_atomic(path, (json.dumps(values, indent=2) + "\n").encode())

    def entry(self, batch: int, sampled: bool) -> Entry:
        """The entry of the smallest measured batch that is not below this one, else of the largest."""
        wanted = ">0" if sampled else "0"
        fitting = sorted((e for e in self.entries if e.temperature == wanted), key=lambda e: e.batch)
        if not fitting:
            raise UsageError(f"the dispatch table has no entry for temperature {wanted}.")
        return next((e for e in fitting if e.batch >= batch), fitting[-1])

    def planner(self, drafter: Drafter) -> Callable[[int, bool], tuple[Tree, Rule]]:
        """What `Speculation(planner=...)` takes. Trees are made once, so switching costs nothing."""
        shapes: dict[Any, Tree] = {}
        for entry in self.entries:
            shape = entry.shape
            if isinstance(shape, HybridTree):
                if not isinstance(drafter, HybridDrafter):
                    raise UsageError("the dispatch table has looked-up nodes: it needs a HybridDrafter.")
                shape = drafter.add(shape)
            shapes[entry.batch, entry.temperature] = shape

        def plan(batch: int, sampled: bool) -> tuple[Tree, Rule]:
            entry = self.entry(batch, sampled)
            return shapes[entry.batch, entry.temperature], entry.rule

        return plan


def dispatch(llm: LLM, path: Path) -> None:
    """Lets a dispatch table choose the trees of a model. Raises UsageError where the model has no drafter, WeightsError for a
    table of another target or weights that it has no entry for."""
    table = Dispatcher.load(path)
    if llm.drafter is None:
        raise UsageError(f"{path}: a dispatch table needs a drafter. Leave out --drafter none.")
    inner = llm.drafter.drafter if isinstance(llm.drafter, HybridDrafter) else llm.drafter
    network = getattr(inner, "network", None)
    if network is not None and network.config.target and table.target != network.config.target:
        raise WeightsError(f"{path} was made for another target. Make one for this: tenfold language tree DRAFTER")
    if not any(entry.weights in ("", llm.format) for entry in table.entries):
        known = ", ".join(sorted({entry.weights for entry in table.entries}))
        raise WeightsError(f"{path} has no entry for weights in {llm.format}, only for {known}.")
    fitting = tuple(entry for entry in table.entries if entry.weights in ("", llm.format))
    table = Dispatcher(table.target, table.drafter, table.machine, fitting)
    llm.engine.speculation = Speculation(planner=table.planner(llm.drafter))


def machine() -> str:
    """Processor and threads, for the table."""
    return f"{platform.machine()} {simd()} {torch.get_num_threads()} threads"

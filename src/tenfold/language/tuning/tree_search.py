"""Draft tree search: the tree with the most tokens per second, from how often each rank is accepted and what a step costs here.

    table = acceptance(replayed.ranks, tree, width=8)           P[k, r]: rank r is accepted at level k, given its parent was
    paths, expected = best_paths(table, 60)                     the best tree of every size: its first n paths
    costs = measure_costs(llm, batches=(1, 8))                  milliseconds of a step by batch and tree
    entries = search(replayed, costs, ...)                      the fastest plan of every batch size
    dispatch(llm, "dispatch.json")                              lets a table of such entries choose (drafting/dispatch.py)

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
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenfold.errors import UsageError, WeightsError
from tenfold.kernels.machine import simd
from tenfold.language.decoding.engine import LLM
from tenfold.language.distillation.replay import accepted_lengths
from tenfold.language.drafting.dispatch import Dispatcher, Entry, kind_of
from tenfold.language.drafting.hybrid_trees import HybridTree
from tenfold.language.drafting.protocol import Rule
from tenfold.language.drafting.speculation import Speculation
from tenfold.language.drafting.tree import Tree
from tenfold.language.sampling.sampling import SamplingParams
from tenfold.language.tuning.measure import Replayed, engine_tpc

SIZES = (2, 4, 6, 8, 12, 16, 20, 24, 32, 48)  # nodes of the drafter's own tree that are tried
CHAINS = (0, 4, 8)  # tokens from prompt lookup beside it


def acceptance(ranks: Sequence[Int[Tensor, "_ k"]], tree: Tree, width: int) -> Float[Tensor, "k r"]:
    """P[k, r] over the steps of the closed loop with `tree`: how often the true token has rank r at level k, given
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
        """A step with the drafter's tree and a chain from prompt lookup; no node at all is plain decoding."""
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
    temperature: Literal["0", ">0"],
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
        entries.append(Entry(batch, temperature, costs.weights, "top_k", own.paths, looked_up, tpc, ms))
    return entries


def rules_at_temperature(
    llm: LLM, entries: Sequence[Entry], prompts: Sequence[Sequence[int]], max_tokens: int = 64
) -> list[tuple[Rule, dict[Rule, float]]]:
    """For each entry the rule that gives more tokens per call at temperature 1 through the engine, and the figures of top_k and
    without_replacement. Equal shapes are measured once."""
    known: dict[str, tuple[Rule, dict[Rule, float]]] = {}
    kept = llm.engine.speculation
    params = [SamplingParams(temperature=1.0, seed=i, max_tokens=max_tokens) for i in range(len(prompts))]
    rules: tuple[Rule, ...] = ("top_k", "without_replacement")
    result = []
    for entry in entries:
        key = json.dumps([entry.paths, entry.looked_up])
        if key not in known:
            figures: dict[Rule, float] = {}
            for rule in rules:
                llm.engine.speculation = Speculation(tree=entry.shape, rule=rule)
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


def dispatch(llm: LLM, path: Path) -> None:
    """Lets a dispatch table choose the trees of a model; a table of another machine is said in the model's notes. Raises
    UsageError where the model has no drafter, WeightsError for a table of another target or drafter, or without entries for
    these weights."""
    table = Dispatcher.load(path)
    if llm.drafter is None:
        raise UsageError(f"{path}: a dispatch table needs a drafter. Leave out --drafter none.")
    own = llm.drafter.fingerprint()
    for what, said, this in (("target", table.target, llm.fingerprint), ("drafter", table.drafter, own)):
        if said not in ("", this) and re.fullmatch(r"[0-9a-f]{16}|ngram", said):
            raise WeightsError(
                f"{path} was made for another {what} ({said}; this one is {this}). "
                "Make one for this: tenfold language tree DRAFTER"
            )
        if said not in ("", this):  # tables of earlier versions have the name of a file
            llm.notes.append(f"{path}: made for the {what} {said!r}, which cannot be compared with this one ({this})")
    if table.machine not in ("", machine()):
        llm.notes.append(
            f"{path}: measured on {table.machine}, this machine is {machine()}: other trees may be faster here"
        )
    if not any(entry.weights in ("", llm.format) for entry in table.entries):
        known = ", ".join(sorted({entry.weights for entry in table.entries}))
        raise WeightsError(f"{path} has no entry for weights in {llm.format}, only for {known}.")
    usable = table.for_weights(llm.format).entries
    for temperature in ("0", ">0"):
        if not any(e.temperature == temperature and e.proposes in ("", kind_of(llm.drafter)) for e in usable):
            raise WeightsError(
                f"{path} has no entry for temperature {temperature} with weights in {llm.format} and this drafter. "
                "Make one that has: tenfold language tree DRAFTER"
            )
    llm.engine.speculation = Speculation(planner=table.planner(llm.drafter, llm.format))


def machine() -> str:
    """CPU and threads, for the table."""
    return f"{platform.machine()} {simd()} {torch.get_num_threads()} threads"

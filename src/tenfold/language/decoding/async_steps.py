"""The host one step behind the device: while a step runs, the host reads and writes out what the step before it has brought.

    ahead = Ahead(runner, most=8, rows=4096)
    if ahead.takes(requests, tree):
        landed = ahead.step(requests, ahead.plan(requests, tree, rule, None))      (request, tokens) of the oldest step
    landed = ahead.land()                                          ... of what is left when others are to go on

A second step takes off before the first has landed as long as the same requests go on with the same tree and there are pages
for both. What a step has computed for a request that has ended meanwhile is dropped; its pages may be handed out again at once,
because the device does everything in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tenfold.inference.pages import PageTable
from tenfold.language.decoding.device_step import Plan, Resident
from tenfold.language.decoding.request import Request
from tenfold.language.decoding.runner import Runner
from tenfold.language.drafting.protocol import Rule
from tenfold.language.drafting.tree import Tree
from tenfold.language.drafting.tree_drafter import TreeDrafter
from tenfold.language.sampling.sampling import kinds_of


@dataclass(frozen=True)
class Flight:
    """A step that was started. `tables` are those of its requests: one that has others by now was sent back meanwhile."""

    plan: Plan
    requests: list[Request]
    tables: list[PageTable]
    results: Tensor
    landed: Any  # a CUDA event; None where the step is done when it returns


class Ahead:
    """See the module's docstring."""

    def __init__(self, runner: Runner, most: int, rows: int, graphs: bool = True) -> None:
        self.runner, self.resident = runner, Resident(runner, most, rows, graphs)
        self._flights: deque[Flight] = deque()
        self._free: list[Tensor] = []  # memory of results that were read

    @staticmethod
    def suits(runner: Runner) -> bool:
        """Whether this drafter's steps can stay on the device: none, or a trained one alone."""
        return runner.drafter is None or isinstance(runner.drafter, TreeDrafter)

    @property
    def flying(self) -> bool:
        return bool(self._flights)

    def takes(self, requests: Sequence[Request], tree: object) -> bool:
        """Whether a step of these requests needs nothing from the host."""
        network = self.resident.drafter.network if isinstance(self.resident.drafter, TreeDrafter) else None
        window = network.config.sliding_window if network is not None else None
        return (
            isinstance(tree, Tree)
            and (window is None or window > tree.height)
            and all(_plain(r) and (network is None or len(r.tokens) > 1) for r in requests)
        )

    def plan(self, requests: Sequence[Request], tree: Tree, rule: Rule, simulated: float | None) -> Plan:
        kinds = kinds_of([r.params for r in requests])
        return Plan(1 << (len(requests) - 1).bit_length(), tree, rule if "sampled" in kinds else "A", kinds, simulated)

    def step(self, requests: list[Request], plan: Plan) -> list[tuple[Request, list[int]]]:
        """Starts what can be started and lands the oldest step. The pages of one step must be there; a second one starts if
        there are free ones for it."""
        if not self._flights:
            self.runner.catch_up(requests)
            self.resident.load(requests, plan)
            self._start(requests, plan)
        # The next step starts where the one in the air ends, at most plan.places rows further.
        rows = plan.places + plan.tree.nodes + 1
        if self.same(requests, plan) and all(self._cover(r, r.rows + rows) for r in requests):
            self.resident.show_pages(requests)
            self._start(requests, plan)
        return self.land()

    def _cover(self, request: Request, rows: int) -> bool:
        return request.table is not None and self.runner.pages.cover(request.table, rows)

    def same(self, requests: Sequence[Request], plan: Plan) -> bool:
        """Whether the last step in the air was this plan for these requests."""
        last = self._flights[-1]
        return (
            last.plan == plan
            and len(last.requests) == len(requests)
            and all(a is b and a.table is t for a, b, t in zip(last.requests, requests, last.tables))
        )

    def _start(self, requests: list[Request], plan: Plan) -> None:
        self.resident.run(plan)
        out = self.resident.out(plan)[: len(requests)]
        if out.device.type != "cuda":
            results, event = out.clone(), None
        else:
            results = next((m for m in self._free if m.shape == out.shape), None)
            if results is None:
                results = torch.empty(out.shape, dtype=out.dtype, pin_memory=True)
            else:
                self._free = [m for m in self._free if m is not results]
            results.copy_(out, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        tables = [r.table for r in requests if r.table is not None]
        self._flights.append(Flight(plan, list(requests), tables, results, event))

    def land(self) -> list[tuple[Request, list[int]]]:
        """The tokens of the oldest step in the air, of the requests that still go on. Waits for it."""
        flight = self._flights.popleft()
        if flight.landed is not None:
            flight.landed.synchronize()
            self._free.append(flight.results)
        going, found = [], []
        for place, (request, table, row) in enumerate(zip(flight.requests, flight.tables, flight.results.tolist())):
            if request.table is not table or request.finish_reason is not None:
                continue
            length, guessed, tokens = row[0], row[1], row[2:]
            request.stats.count(length, guessed, flight.plan.tree.height)
            request.stats.simulated |= flight.plan.simulated is not None
            request.rows += length + 1
            if request.draft is not None:
                request.draft.rows += length + 1
            going.append((place, request))
            found.append((request, tokens[: length + 1]))
        if not self._flights:
            self.resident.give_back(going)
        return found


def _plain(request: Request) -> bool:
    return request.grammar is None and not request.params.penalised and request.params.logprobs is None

"""Asynchronous scheduling of decoding steps: while a step runs on the device, the host writes out what the one before brought.

    steps = AsyncSteps(runner, most=8, rows=4096)
    if steps.accepts(requests, tree):
        finished = steps.step(requests, steps.plan(requests, tree, rule, None))    (request, tokens) of the oldest step
    finished = steps.finish_oldest()                               ... of what is left when others are to follow

A second step is started before the first has been read as long as the same requests follow with the same tree and there are
pages for both. What a step has computed for a request that has ended meanwhile is dropped; its pages may be given away at once,
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
from tenfold.language.decoding.step import record
from tenfold.language.drafting.protocol import Rule, Shape
from tenfold.language.drafting.tree import Tree
from tenfold.language.sampling.sampling import kinds_of


@dataclass(frozen=True)
class InFlightStep:
    """A step that was started. `tables` are those of its requests: one that has others by now was preempted meanwhile."""

    plan: Plan
    requests: list[Request]
    tables: list[PageTable]
    results: Tensor
    ready: Any  # a CUDA event; None where the step is done when it returns


class AsyncSteps:
    """Steps on the device, of which at most two are in flight."""

    def __init__(self, runner: Runner, most: int, rows: int, *, graphs: bool = True) -> None:
        self.runner, self.resident = runner, Resident(runner, most, rows, graphs=graphs)
        self._steps: deque[InFlightStep] = deque()
        self._free: list[Tensor] = []  # memory of results that were read

    @staticmethod
    def suits(runner: Runner) -> bool:
        """Whether this drafter's steps can stay on the device."""
        return runner.drafter is None or runner.drafter.resident() is not None

    @property
    def in_flight(self) -> int:
        """Steps that were started and not read yet."""
        return len(self._steps)

    @property
    def buffers(self) -> int:
        """Results whose memory is free to be used again."""
        return len(self._free)

    def accepts(self, requests: Sequence[Request], shape: Shape) -> bool:
        """Whether a step of these requests needs nothing from the host."""
        tree, drafter = shape.fixed, self.resident.drafter
        if tree is None or (drafter is not None and not drafter.follows(tree)):
            return False
        return all(_plain(r) and (drafter is None or len(r.tokens) > 1) for r in requests)

    def plan(self, requests: Sequence[Request], tree: Tree, rule: Rule, simulated: float | None) -> Plan:
        """What a step of these requests does."""
        kinds = kinds_of([r.params for r in requests])
        batch = 1 << (len(requests) - 1).bit_length()
        return Plan(batch, tree, rule if "sampled" in kinds else "top_k", kinds, simulated)

    def step(self, requests: list[Request], plan: Plan) -> list[tuple[Request, list[int]]]:
        """Starts what can be started and reads the oldest step. The pages of one step must be there; a second one starts if
        there are free ones for it."""
        if not self._steps:
            self.runner.catch_up(requests)
            self.resident.load(requests, plan)
            self.start(requests, plan)
        # The next step starts where the one in flight ends, at most plan.places rows further.
        rows = plan.places + plan.tree.nodes + 1
        if self.same(requests, plan) and all(self._cover(r, r.rows + rows) for r in requests):
            self.resident.show_pages(requests)
            self.start(requests, plan)
        return self.finish_oldest()

    def _cover(self, request: Request, rows: int) -> bool:
        return request.table is not None and self.runner.pages.cover(request.table, rows)

    def same(self, requests: Sequence[Request], plan: Plan) -> bool:
        """Whether the last step in flight was this plan for these requests."""
        last = self._steps[-1]
        return (
            last.plan == plan
            and len(last.requests) == len(requests)
            and all(a is b and a.table is t for a, b, t in zip(last.requests, requests, last.tables))
        )

    def start(self, requests: list[Request], plan: Plan) -> None:
        """Starts a step of the requests that are loaded, and the copy of its results. Waits for nothing."""
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
        self._steps.append(InFlightStep(plan, list(requests), tables, results, event))

    def finish_oldest(self) -> list[tuple[Request, list[int]]]:
        """The tokens of the oldest step in flight, of the requests that still run. Waits for it."""
        step = self._steps.popleft()
        if step.ready is not None:
            step.ready.synchronize()
            self._free.append(step.results)
        running, found = [], []
        for place, (request, table, row) in enumerate(zip(step.requests, step.tables, step.results.tolist())):
            if request.table is not table or request.finish_reason is not None:
                continue
            length, drafted, tokens = row[0], row[1], row[2:]
            record(request, length, drafted, step.plan.tree.height, simulated=step.plan.simulated is not None)
            request.rows += length + 1
            if request.draft is not None:
                request.draft.rows += length + 1
            running.append((place, request))
            found.append((request, tokens[: length + 1]))
        if not self._steps:
            self.resident.give_back(running)
        return found


def _plain(request: Request) -> bool:
    return request.grammar is None and not request.params.penalised and request.params.logprobs is None

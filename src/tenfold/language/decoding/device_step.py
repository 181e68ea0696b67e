"""Device-resident decoding steps (CUDA graphs): draft, verify, accept, move rows, feed the drafter, with one small copy back.

    resident = Resident(runner, most=8, rows=4096)
    resident.load(requests, plan)                     what the host knows of them goes to the device
    resident.run(plan)                                one step; on a GPU a CUDA graph, recorded at the first step of a plan
    resident.out(plan)                                of every request: accepted, drafted, and the accepted + 1 new tokens

The step itself is that of decoding/step.py. Nothing in it depends on what only the host knows: lengths, roots and the drafter's
last rows are tensors that a step changes for the next one, so the next one can start before the host has read what the first
has brought (decoding/async_steps.py). A batch is filled up to a power of two with padding, whose rows go to a page of its own.

Here are requests whose next step needs nothing but their numbers: no grammar, no penalties, no log-probabilities, no prompt
lookup.

    B requests and padding   N root and nodes   K height of the tree + 1   P pages of a table   F width of features
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tenfold.inference.device_pages import DeviceStep, slots
from tenfold.language.decoding.request import Request
from tenfold.language.decoding.runner import Runner
from tenfold.language.decoding.step import DeviceNumbers, decoding_step
from tenfold.language.drafting.protocol import DeviceRows, Draft, DraftTrees, Rule
from tenfold.language.drafting.tree import Tree
from tenfold.language.models.llama import Output
from tenfold.language.sampling.sampling import Kind, SamplingTensors

WARM = 3  # steps before a graph is recorded, in which libraries and Triton get ready


@dataclass(frozen=True)
class Plan:
    """All that a step's operations depend on. batch: requests and padding."""

    batch: int
    tree: Tree
    rule: Rule
    kinds: frozenset[Kind]
    simulated: float | None = None

    @property
    def places(self) -> int:
        """Tokens that a step emits at most."""
        return self.tree.height + 1


class Resident:
    """Buffers for at most `most` requests of at most `rows` rows each. graphs: record steps where there is CUDA."""

    def __init__(self, runner: Runner, most: int, rows: int, graphs: bool = True) -> None:
        self.runner, self.device = runner, runner.device
        self.drafter = runner.drafter.resident() if runner.drafter else None
        assert (self.drafter is None) == (runner.drafter is None), "this drafter needs the host between two steps"
        batch, size = 1 << (most - 1).bit_length(), runner.pages.size
        self.padding, self.width = runner.pages.count, -(-rows // size)  # padding: the page of its rows
        self.tables = torch.full((batch, self.width), self.padding, device=self.device)
        self.starts, self.roots, self.seeds, self.top_k = torch.zeros(4, batch, dtype=torch.int64, device=self.device)
        self.live = torch.zeros(batch, dtype=torch.bool, device=self.device)
        self.temperature, self.top_p = torch.zeros(2, batch, device=self.device)
        self.carry: tuple[Tensor, Tensor] | None = None
        self.outs: dict[int, Tensor] = {}
        self._shown: list[int] = []
        self.graphs: dict[Plan, torch.cuda.CUDAGraph] | None = {} if graphs and self.device.type == "cuda" else None
        self._pool = None
        runner.model.rope.reserve(rows)
        if self.drafter is not None:
            self.drafter.reserve(rows)

    @torch.inference_mode()
    def load(self, requests: Sequence[Request], plan: Plan) -> None:
        """Puts requests, whose drafter's rows are complete, in the places of those before."""
        count, rest = len(requests), plan.batch - len(requests)
        params = [r.params for r in requests]
        sampling = SamplingTensors.of(params)
        for buffer, values in (
            (self.starts, [r.rows for r in requests]),
            (self.roots, [r.tokens[-1] for r in requests]),
            (self.seeds, [r.seed for r in requests]),
            (self.live, [True] * count),
        ):
            self._put(buffer[: plan.batch], torch.tensor([*values, *[0] * rest], dtype=buffer.dtype))
        for buffer, values in (
            (self.temperature, sampling.temperature),
            (self.top_k, sampling.top_k),
            (self.top_p, sampling.top_p),
        ):
            self._put(buffer[:count], values)
        self._shown = []
        self.tables.fill_(self.padding)
        self.show_pages(requests)
        if self.drafter is None:
            return
        held = [r.draft.carry for r in requests if r.draft is not None]
        if self.carry is None:
            self.carry = tuple(
                torch.zeros(len(self.starts), *p.shape, dtype=p.dtype, device=self.device) for p in held[0]
            )  # type: ignore[assignment]
        assert self.carry is not None
        for buffer, parts in zip(self.carry, zip(*held, strict=True)):
            buffer[:count] = torch.stack(parts)

    def show_pages(self, requests: Sequence[Request]) -> None:
        """The page tables of the requests that were loaded, where they have grown."""
        tables = [r.table.pages[: self.width] for r in requests if r.table is not None]
        if [len(pages) for pages in tables] == self._shown:
            return
        self._shown = [len(pages) for pages in tables]
        wide = torch.full((len(tables), self.width), self.padding)
        for row, pages in zip(wide, tables):
            row[: len(pages)] = torch.tensor(pages)
        self._put(self.tables[: len(tables)], wide)

    def _put(self, buffer: Tensor, values: Tensor) -> None:
        """CUDA has taken the values from ordinary memory of the host when this returns; nothing waits for the device."""
        buffer.copy_(values, non_blocking=True)

    @torch.inference_mode()
    def give_back(self, requests: Sequence[tuple[int, Request]]) -> None:
        """The drafter's last rows of these places to their requests, which are decoded otherwise from here on."""
        if self.carry is None:
            return
        hidden, logits = self.carry
        for place, request in requests:
            assert request.draft is not None
            request.draft.carry = (hidden[place].clone(), logits[place].clone())

    @torch.inference_mode()
    def run(self, plan: Plan) -> None:
        """One step of the first plan.batch requests. Results lie in `out(plan)`."""
        if self.graphs is None:
            self.step(plan)
            return
        if plan not in self.graphs:
            self.graphs[plan] = self._record(plan)
        self.graphs[plan].replay()

    def out(self, plan: Plan) -> Int[Tensor, "B K2"]:
        """Of the last step: accepted tokens, draft tokens, and the emitted tokens (behind them zeros)."""
        if plan.places not in self.outs:
            shape = (len(self.starts), plan.places + 2)
            self.outs[plan.places] = torch.zeros(shape, dtype=torch.int64, device=self.device)
        return self.outs[plan.places][: plan.batch]

    def _record(self, plan: Plan) -> torch.cuda.CUDAGraph:
        """With no live request a step changes nothing but rows behind the texts, so that getting ready costs no state."""
        alive = self.live.clone()
        self.live.zero_()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM):
                self.step(plan)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self.step(plan)
        self._pool = graph.pool()
        self.live.copy_(alive)
        return graph

    def step(self, plan: Plan) -> None:
        """The operations of one step: no shape and no branch depends on a number that is on the device."""
        runner, batch, size = self.runner, plan.batch, self.runner.pages.size
        tables, starts, live = self.tables[:batch], self.starts[:batch], self.live[:batch]
        numbers = DeviceNumbers(self.seeds[:batch], starts + 1)

        def forward(nodes: Tensor, trees: DraftTrees) -> tuple[Output, Tensor]:
            view = DeviceStep(runner.cache, tables, size, prefix=starts, before=0, count=trees.nodes + 1)
            out = runner.model(nodes, starts[:, None] + trees.depth, view, trees.mask, runner.aux_layers)
            return out, out.logits

        outcome = decoding_step(
            self.roots[:batch],
            lambda: self._draft(plan, numbers),
            forward,
            sampling=SamplingTensors(self.temperature[:batch], self.top_k[:batch], self.top_p[:batch], plan.kinds),
            rule=plan.rule,
            numbers=numbers,
            simulated=plan.simulated,
        )
        place, length = torch.arange(plan.places, device=self.device), outcome.accepted.length
        runner.cache.copy(
            slots(tables, size, starts[:, None] + outcome.path).flatten(),
            slots(tables, size, starts[:, None] + place).flatten(),
        )
        if self.drafter is not None:
            features = runner.features(outcome.out)
            assert features is not None
            assert self.carry is not None
            kept = outcome.path[..., None].expand(-1, -1, features.shape[-1])
            rows = DeviceRows(tables, size, starts)
            # All requests give as many rows; those behind a request's own are overwritten before anything reads them.
            made = self.drafter.extend_resident(outcome.tokens, features.gather(1, kept), rows, last=length)
            for buffer, new in zip(self.carry, made):
                buffer[:batch] = torch.where(live[:, None], new.to(buffer.dtype), buffer[:batch])
        self.roots[:batch] = torch.where(live, outcome.accepted.bonus, self.roots[:batch])
        self.starts[:batch] += (length + 1) * live
        self.out(plan).copy_(torch.cat([length[:, None], outcome.drafted[:, None], outcome.tokens], dim=1))

    def _draft(self, plan: Plan, numbers: DeviceNumbers) -> tuple[Draft, Tree]:
        batch, tree = plan.batch, plan.tree.on(self.device)
        if self.drafter is None or tree.nodes == 0:
            return Draft(torch.full((batch, tree.nodes), -1, device=self.device)), tree
        assert self.carry is not None
        hidden, logits = self.carry
        draft = self.drafter.draft_resident(
            (hidden[:batch], logits[:batch]),
            tree,
            DeviceRows(self.tables[:batch], self.runner.pages.size, self.starts[:batch]),
            rule=plan.rule,
            temperatures=self.temperature[:batch],
            greedy="greedy" in plan.kinds,
            uniforms=numbers.draft,
        )
        return draft, tree

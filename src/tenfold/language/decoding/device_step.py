"""A decoding step that stays on the device: draft, check, accept, move rows, feed the drafter, with one small copy back.

    resident = Resident(runner, most=8, rows=4096)
    resident.load(requests, plan)                     what the host knows of them goes to the device
    resident.run(plan)                                one step; on a GPU a CUDA graph, recorded at the first step of a plan
    resident.out(plan)                                of every request: accepted, guessed, and the accepted + 1 new tokens

Nothing in a step depends on what the host would have to be told: lengths, roots and the drafter's last rows are tensors that a
step changes for the next one, so the next one can start before anyone has read what the first has brought
(decoding/async_steps.py).
A batch is filled up to a power of two with requests of nobody, whose rows go to one page of nobody.

Here are requests whose next step needs nothing but their numbers: no grammar, no penalties, no log-probabilities, no look-up.

    B requests, filled up   N root and nodes   K height of the tree + 1   P pages of a table   F width of features
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
from tenfold.language.drafting.protocol import Draft, Rule
from tenfold.language.drafting.rejection import Accepted, simulate, verify_greedy, verify_sampled
from tenfold.language.drafting.tree import Level, Tree
from tenfold.language.drafting.tree_drafter import TreeDrafter
from tenfold.language.sampling.randomness import ACCEPT, BONUS, DRAFT, device_uniforms
from tenfold.language.sampling.sampling import Kind, Laws

WARM = 3  # steps before a graph is recorded, in which libraries and Triton get ready


@dataclass(frozen=True)
class Plan:
    """All that a step's operations depend on. batch: requests, those of nobody among them."""

    batch: int
    tree: Tree
    rule: Rule
    kinds: frozenset[Kind]
    simulated: float | None = None

    @property
    def places(self) -> int:
        """Tokens that a step brings at most."""
        return self.tree.height + 1


class Resident:
    """Buffers for at most `most` requests of at most `rows` rows each. graphs: record steps where there is CUDA."""

    def __init__(self, runner: Runner, most: int, rows: int, graphs: bool = True) -> None:
        self.runner, self.drafter, self.device = runner, runner.drafter, runner.device
        assert self.drafter is None or isinstance(self.drafter, TreeDrafter)
        batch, size = 1 << (most - 1).bit_length(), runner.pages.size
        self.nobody, self.width = runner.pages.count, -(-rows // size)
        self.tables = torch.full((batch, self.width), self.nobody, device=self.device)
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
            self.drafter.network.rope.reserve(rows)

    @torch.inference_mode()
    def load(self, requests: Sequence[Request], plan: Plan) -> None:
        """Puts requests, whose drafter's rows are complete, in the places of those before."""
        count, rest = len(requests), plan.batch - len(requests)
        params = [r.params for r in requests]
        laws = Laws.of(params)
        for buffer, values in (
            (self.starts, [r.rows for r in requests]),
            (self.roots, [r.tokens[-1] for r in requests]),
            (self.seeds, [r.seed for r in requests]),
            (self.live, [True] * count),
        ):
            self._put(buffer[: plan.batch], torch.tensor([*values, *[0] * rest], dtype=buffer.dtype))
        for buffer, values in (
            (self.temperature, laws.temperature),
            (self.top_k, laws.top_k),
            (self.top_p, laws.top_p),
        ):
            self._put(buffer[:count], values)
        self._shown = []
        self.tables.fill_(self.nobody)
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
        wide = torch.full((len(tables), self.width), self.nobody)
        for row, pages in zip(wide, tables):
            row[: len(pages)] = torch.tensor(pages)
        self._put(self.tables[: len(tables)], wide)

    def _put(self, buffer: Tensor, values: Tensor) -> None:
        """CUDA has taken the values from ordinary memory of the host when this returns; nobody waits for the device."""
        buffer.copy_(values, non_blocking=True)

    @torch.inference_mode()
    def give_back(self, requests: Sequence[tuple[int, Request]]) -> None:
        """The drafter's last rows of these places to their requests, which go on by other ways."""
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
        """Of the last step: how many nodes were accepted, how many were guessed, and the new tokens (behind them zeros)."""
        if plan.places not in self.outs:
            shape = (len(self.starts), plan.places + 2)
            self.outs[plan.places] = torch.zeros(shape, dtype=torch.int64, device=self.device)
        return self.outs[plan.places][: plan.batch]

    def _record(self, plan: Plan) -> torch.cuda.CUDAGraph:
        """With nobody alive a step changes nothing but rows behind the texts, so that getting ready costs no state."""
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
        """The operations of one step: no shape and no branch depends on a number that lies on the device."""
        runner, batch, size = self.runner, plan.batch, self.runner.pages.size
        tables, starts, live = self.tables[:batch], self.starts[:batch], self.live[:batch]
        laws = Laws(self.temperature[:batch], self.top_k[:batch], self.top_p[:batch], plan.kinds)
        tree = plan.tree.on(self.device)
        draft = self._draft(plan, tree)
        nodes = torch.cat([self.roots[:batch, None], draft.tokens.clamp_min(0)], dim=1)
        view = DeviceStep(runner.cache, tables, size, starts, 0, tree.nodes + 1)
        out = runner.model(nodes, starts[:, None] + tree.depth, view, tree.mask, runner.aux_layers)
        accepted = self._verify(plan, out.logits, laws, draft, tree)
        place = torch.arange(plan.places, device=self.device)
        stands = place <= accepted.length[:, None]
        path = torch.where(stands, accepted.path, place)  # where nothing stands rows go to where they are
        runner.cache.copy(
            slots(tables, size, starts[:, None] + path).flatten(),
            slots(tables, size, starts[:, None] + place).flatten(),
        )
        following = torch.cat([path[:, 1:], path[:, :1]], dim=1)
        tokens = torch.where(place == accepted.length[:, None], accepted.bonus[:, None], nodes.gather(1, following))
        tokens = torch.where(stands, tokens, 0)
        if self.drafter is not None:
            features = runner.features(out)
            assert features is not None
            kept = path[..., None].expand(-1, -1, features.shape[-1])
            self._extend(tables, starts, tokens, features.gather(1, kept), accepted.length, live)
        self.roots[:batch] = torch.where(live, accepted.bonus, self.roots[:batch])
        self.starts[:batch] += (accepted.length + 1) * live
        guessed = (draft.tokens >= 0).sum(-1, keepdim=True)
        self.out(plan).copy_(torch.cat([accepted.length[:, None], guessed, tokens], dim=1))

    def _draft(self, plan: Plan, tree: Tree) -> Draft:
        batch = plan.batch
        if self.drafter is None or tree.nodes == 0:
            return Draft(torch.full((batch, tree.nodes), -1, device=self.device))
        drafter, starts = self.drafter, self.starts[:batch]
        assert isinstance(drafter, TreeDrafter)
        assert drafter.cache is not None
        assert self.carry is not None
        hidden, logits = (part[:batch, None] for part in self.carry)

        def numbers(slots: Tensor, width: int) -> Tensor:
            return device_uniforms(self.seeds[:batch], starts + 1, DRAFT + slots, width)

        def expand(level: Level, following: Level, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
            fresh = len(following.inner)
            lows = self._lows(starts + following.depth - 1, torch.zeros(fresh, dtype=torch.int64, device=self.device))
            before = following.mask.shape[1] - fresh
            view = DeviceStep(drafter.cache, self.tables[:batch], self.runner.pages.size, starts, before, fresh, lows)  # type: ignore[arg-type]
            return drafter.expand(level, following, hidden, tokens, starts, view)

        greedy = "greedy" in plan.kinds
        return drafter.grow(hidden, logits.float(), tree, plan.rule, self.temperature[:batch], greedy, numbers, expand)

    def _lows(self, first: Int[Tensor, " B"], place: Int[Tensor, " n"]) -> Int[Tensor, "B n"] | None:
        """The first row that the drafter's rows at first[b] + place[i] see."""
        assert isinstance(self.drafter, TreeDrafter)
        window = self.drafter.network.config.sliding_window
        return None if window is None else (first[:, None] + place - window + 1).clamp_min(0)

    def _verify(self, plan: Plan, logits: Tensor, laws: Laws, draft: Draft, tree: Tree) -> Accepted:
        seeds, lengths = self.seeds[: plan.batch], self.starts[: plan.batch] + 1
        if plan.simulated is not None:
            purpose = torch.full((1,), ACCEPT, device=self.device)
            coins = device_uniforms(seeds, lengths, purpose, max(1, tree.height))[:, 0]
            return simulate(logits, draft, tree, coins, plan.simulated)
        if laws.greedy:
            return verify_greedy(logits, draft, tree)
        siblings = torch.arange(ACCEPT, ACCEPT + tree.siblings, device=self.device)
        purposes = torch.cat([siblings, torch.full((1,), BONUS, device=self.device)])
        levels = [device_uniforms(seeds, lengths + depth, purposes)[:, :, 0] for depth in range(tree.height + 1)]
        return verify_sampled(logits, laws, draft, tree, torch.stack(levels, dim=1), plan.rule)

    def _extend(
        self, tables: Tensor, starts: Tensor, tokens: Tensor, features: Tensor, length: Tensor, live: Tensor
    ) -> None:
        """The drafter's rows of what was accepted. All requests give as many rows; those behind a request's own are
        overwritten before anyone sees them."""
        drafter = self.drafter
        assert isinstance(drafter, TreeDrafter)
        assert drafter.cache is not None
        assert self.carry is not None
        batch, places = tokens.shape
        place = torch.arange(places, device=self.device)
        view = DeviceStep(drafter.cache, tables, self.runner.pages.size, starts, 0, places, self._lows(starts, place))
        fused = drafter.fuse(features.flatten(0, 1)).unflatten(0, (batch, places))
        last = torch.arange(batch, device=self.device) * places + length
        made = drafter.run(drafter.embed(tokens), fused, starts[:, None] + place, view, None, last)
        for buffer, new in zip(self.carry, made):
            buffer[:batch] = torch.where(live[:, None], new.to(buffer.dtype), buffer[:batch])

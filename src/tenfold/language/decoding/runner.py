"""Runner of decoding on the host: prefill in chunks, and speculative decoding steps for all requests in one pass of the target.

    runner.prefill([(request, 128), ...])              rows behind what each request has; no logits
    step = runner.decode(requests, tree, rule)         draft, verify, and what every request may emit (decoding/step.py)
    runner.commit(step, [0, 2])                        accepted rows move forward, the drafter gets the true features

The last token of a text is not in the pages yet: it is the root that the next step verifies with its tree.

    B requests   N root and nodes   M rows of several requests   V vocabulary   F width of the drafter's features
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenfold.inference.pages import PageAllocator, PagedCache, PageTable
from tenfold.language.decoding.grammar import lead
from tenfold.language.decoding.request import Logprob, Request
from tenfold.language.decoding.step import HostNumbers, decoding_step, hooks_of
from tenfold.language.drafting.protocol import Draft, Drafter, DraftState, DraftTrees, Rule, Shape
from tenfold.language.drafting.tree import Tree
from tenfold.language.models.llama import Llama, Output
from tenfold.language.models.paged_forward import Passes
from tenfold.language.sampling.sampling import SamplingTensors


@dataclass(frozen=True)
class Step:
    """What a decoding step found: paths[b] are the root and the accepted nodes, emitted[b] the new tokens; drafted[b] counts
    draft tokens, of a tree of this height."""

    requests: list[Request]
    starts: list[int]
    paths: list[list[int]]
    emitted: list[list[int]]
    logprobs: list[list[Logprob]]
    features: Float[Tensor, "B N F"] | None
    drafted: list[int]
    height: int
    simulated: bool


class Runner:
    """Owns the model, the pages and the drafter's pages."""

    def __init__(self, model: Llama, drafter: Drafter | None, pages: int, page_size: int = 16) -> None:
        self.model, self.drafter = model, drafter
        self.forward = Passes(model)
        self.pages = PageAllocator(pages, page_size)
        weight, c = model.embedding.weight, model.config
        self.device = weight.device
        # One page more than is given to requests: for the padding of a batch (decoding/device_step.py).
        self.cache = PagedCache(c.depth, c.kv_heads, c.width, pages + 1, page_size, weight.dtype, weight.device)
        self.draft_cache = drafter.open(pages + 1, page_size) if drafter else None

    def start(self, request: Request) -> None:
        """Gives a request an empty page table, with a run held for all that it may become."""
        request.table = self.pages.open(request.prompt_length + request.params.max_tokens + 64)
        request.rows = 0
        request.page_features = {}
        request.draft = DraftState(request.tokens, request.table) if self.drafter else None

    def stop(self, request: Request) -> None:
        if request.table is not None:
            self.pages.close(request.table)
        request.table = request.draft = None
        request.rows = 0

    @torch.inference_mode()
    def prefill(self, parts: Sequence[tuple[Request, int]]) -> None:
        """Adds `count` rows to each request; their pages must be there."""
        requests, counts = [r for r, _ in parts], [n for _, n in parts]
        starts = [r.rows for r in requests]
        tokens = torch.tensor([[t for r, n in parts for t in r.tokens[r.rows : r.rows + n]]])
        positions = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, counts)])[None]
        store = self.cache.step([_table(r) for r in requests], starts, counts)
        nothing = torch.empty(0, dtype=torch.int64, device=self.device)
        out = self.forward(tokens.to(self.device), positions.to(self.device), store, None, self.aux_layers, nothing)
        features = self.features(out)
        for request, count in parts:
            request.rows += count
        if self.drafter is None:
            return
        flat = None if features is None else features[0]
        if flat is not None:
            self._note_page_ends(parts, starts, flat)
        following = [t for r, s, n in zip(requests, starts, counts) for t in r.tokens[s + 1 : s + n + 1]]
        self.drafter.extend([_state(r) for r in requests], counts, torch.tensor(following), flat)

    def _note_page_ends(self, parts: Sequence[tuple[Request, int]], starts: list[int], features: Tensor) -> None:
        at, size = 0, self.pages.size
        for (request, count), start in zip(parts, starts):
            for row in range(start + (-start - 1) % size, start + count, size):
                request.page_features[row // size] = features[at + row - start].clone()
            at += count
            request.last_feature = features[at - 1].clone()

    @torch.inference_mode()
    def decode(self, requests: list[Request], shape: Shape, rule: Rule, simulated: float | None = None) -> Step:
        """One pass of the target over the root and the tree of every request; their pages must be there. simulated: see
        Speculation.simulated_accept."""
        starts = [r.rows for r in requests]
        sampling = SamplingTensors.of([r.params for r in requests])

        def propose() -> tuple[Draft, DraftTrees]:
            draft, trees = self._draft(requests, shape, rule, sampling)
            return (lead([r.grammar for r in requests], draft, trees.one(0)) if trees.shared else draft), trees

        def forward(nodes: Tensor, trees: DraftTrees) -> tuple[Output, Tensor]:
            size = trees.nodes + 1
            positions = torch.tensor(starts)[:, None] + trees.depth
            store = self.cache.step([_table(r) for r in requests], starts, [size] * len(requests))
            mask = trees.mask.to(self.device) if size > 1 else None
            out = self.forward(nodes.to(self.device), positions.to(self.device), store, mask, self.aux_layers)
            # On a device, steps that need nothing from the host are those of decoding/device_step.py.
            return out, out.logits.to("cpu")

        outcome = decoding_step(
            torch.tensor([r.tokens[-1] for r in requests]),
            propose,
            forward,
            sampling=sampling,
            rule=rule,
            numbers=HostNumbers([r.seed for r in requests], [len(r.tokens) for r in requests]),
            hooks=hooks_of(requests, self.model.config.vocabulary),
            simulated=simulated,
        )
        lengths, drafted = outcome.accepted.length.tolist(), outcome.drafted.tolist()
        paths = [row[: length + 1] for row, length in zip(outcome.path.tolist(), lengths)]
        emitted = [row[: length + 1] for row, length in zip(outcome.tokens.tolist(), lengths)]
        every = zip(requests, outcome.logits, paths, emitted)
        logprobs = [self._logprobs(request, logits, path, tokens) for request, logits, path, tokens in every]
        features, height = self.features(outcome.out), outcome.trees.height
        return Step(requests, starts, paths, emitted, logprobs, features, drafted, height, simulated is not None)

    @torch.inference_mode()
    def commit(self, step: Step, alive: Sequence[int]) -> None:
        """Keeps the accepted rows of the requests that continue (their tokens are appended already); drops all others, and
        gives back the pages that only the tree needed."""
        if not alive:
            return
        requests = [step.requests[b] for b in alive]
        paths = [step.paths[b] for b in alive]
        self.cache.keep([_table(r) for r in requests], [step.starts[b] for b in alive], paths)
        for request, path in zip(requests, paths):
            request.rows += len(path)
        if self.drafter is not None:
            self._feed(step, alive, requests)
        for request in requests:
            self.pages.trim(_table(request), request.rows)

    def _feed(self, step: Step, alive: Sequence[int], requests: Sequence[Request]) -> None:
        for b, request in zip(alive, requests):
            rows, all_rows = step.paths[b], step.features
            kept = None if all_rows is None else all_rows[b, :1] if len(rows) == 1 else all_rows[b, rows]
            _state(request).waiting.append((step.emitted[b], kept))
        if (
            step.height > 0
        ):  # else it may be long until the next draft: a batch too large to speculate pays nothing for it
            self.catch_up(requests)

    def catch_up(self, requests: Sequence[Request]) -> None:
        """Gives the drafter the rows that it does not have yet."""
        if self.drafter is None:
            return
        behind = [r for r in requests if _state(r).waiting]
        if not behind:
            return
        try:
            self._extend([_state(r) for r in behind])
        except Exception:
            for request in behind:  # which one it was
                if _state(request).waiting:
                    with request.own_part():
                        self._extend([_state(request)])

    def _extend(self, states: list[DraftState]) -> None:
        assert self.drafter is not None
        counts = [sum(len(tokens) for tokens, _ in state.waiting) for state in states]
        rows = [row for state in states for row in state.waiting]
        features = [feature for _, feature in rows if feature is not None]
        tokens = torch.tensor([token for tokens, _ in rows for token in tokens])
        self.drafter.extend(states, counts, tokens, torch.cat(features) if features else None)
        for state in states:
            state.waiting.clear()

    def _draft(
        self, requests: list[Request], shape: Shape, rule: Rule, sampling: SamplingTensors
    ) -> tuple[Draft, DraftTrees]:
        # A text of one token has no row yet from which anything could be drafted.
        able = [b for b, r in enumerate(requests) if len(r.tokens) > 1]
        if self.drafter is None or shape.nodes == 0 or not able:
            empty = shape.fixed or Tree.chain(0)
            return Draft(torch.full((len(requests), empty.nodes), -1)), empty
        some = [requests[b] for b in able]
        self.catch_up(some)
        numbers = HostNumbers([r.seed for r in some], [len(r.tokens) for r in some])
        states = [_state(r) for r in some]
        draft, trees = shape.propose(self.drafter, states, rule, sampling.temperature[able], numbers.draft)
        draft = draft.cpu()
        if len(able) == len(requests):
            return draft, trees
        return draft.spread(able, len(requests)), trees.spread(able, len(requests))

    def _logprobs(self, request: Request, logits: Tensor, path: list[int], emitted: list[int]) -> list[Logprob]:
        wanted, found = request.params.logprobs, []
        with request.own_part():
            found = _logprobs_of(wanted, logits, path, emitted) if wanted is not None else []
        return found

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """Layers of the target whose inputs the drafter wants."""
        return self.drafter.aux_layers if self.drafter and self.drafter.features == "aux" else ()

    def features(self, out: Output) -> Float[Tensor, "B N F"] | None:
        """What the drafter wants of a pass."""
        kind = self.drafter.features if self.drafter else "none"
        return {"none": None, "aux": out.aux, "hidden": out.hidden}[kind]


def _table(request: Request) -> PageTable:
    assert request.table is not None, "a request without pages"
    return request.table


def _state(request: Request) -> DraftState:
    assert request.draft is not None, "a request without a drafter's state"
    return request.draft


def _logprobs_of(wanted: int, logits: Tensor, path: list[int], emitted: list[int]) -> list[Logprob]:
    logs = logits[path].float().log_softmax(-1)
    best = logs.topk(max(1, wanted), dim=-1)
    rows = zip(emitted, logs, best.indices.tolist(), best.values.tolist())
    return [Logprob(t, float(row[t]), tuple(zip(ids, values))[:wanted]) for t, row, ids, values in rows]

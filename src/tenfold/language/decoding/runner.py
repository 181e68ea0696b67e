"""One step on the device: prompts in chunks, and drafts checked by the target in one pass for all requests.

    runner.prefill([(request, 128), ...])              rows behind what each request has; no logits
    step = runner.decode(requests, tree, rule)         draft, check, and what every request may emit
    runner.commit(step, [0, 2])                        accepted rows move forward, the drafter gets the true features

The last token of a text is not in the pages yet: it is the root that the next step checks with its tree.

    B requests   N root and nodes   M rows of several requests   V vocabulary   F width of the drafter's features
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tenfold.errors import UsageError
from tenfold.inference.pages import PageAllocator, PagedCache, PageTable
from tenfold.language.decoding.grammar import lead
from tenfold.language.decoding.request import Logprob, Request
from tenfold.language.drafting.dynamic import DynamicTree, TreeBatch, draft_dynamic
from tenfold.language.drafting.ngram import HybridDrafter, own_part
from tenfold.language.drafting.protocol import Draft, Drafter, DraftState, Rule
from tenfold.language.drafting.rejection import Accepted, simulate, verify_greedy, verify_sampled
from tenfold.language.drafting.tree import Tree
from tenfold.language.drafting.tree_drafter import TreeDrafter
from tenfold.language.models.llama import Llama, Output
from tenfold.language.models.paged_forward import Passes
from tenfold.language.sampling.penalties import penalise
from tenfold.language.sampling.randomness import ACCEPT, BONUS, DRAFT, uniforms
from tenfold.language.sampling.sampling import Laws, allow


@dataclass(frozen=True)
class Step:
    """What a decoding pass found: paths[b] are the nodes that stand (root first), emitted[b] the new tokens."""

    requests: list[Request]
    starts: list[int]
    paths: list[list[int]]
    emitted: list[list[int]]
    logprobs: list[list[Logprob]]
    features: Float[Tensor, "B N F"] | None
    drafted: bool


class Runner:
    """Owns the model, the pages and the drafter's pages."""

    def __init__(self, model: Llama, drafter: Drafter | None, pages: int, page_size: int = 16) -> None:
        self.model, self.drafter = model, drafter
        self.forward = Passes(model)
        self.pages = PageAllocator(pages, page_size)
        weight, c = model.embedding.weight, model.config
        self.device = weight.device
        # One page more than is handed out: for the rows of nobody that fill up a batch (decoding/device_step.py).
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
    def decode(
        self, requests: list[Request], shape: Tree | DynamicTree, rule: Rule, simulated: float | None = None
    ) -> Step:
        """One pass of the target over the root and the tree of every request; their pages must be there. simulated: see
        Speculation.simulated_accept."""
        starts = [r.rows for r in requests]
        laws = Laws.of([r.params for r in requests])
        if isinstance(self.drafter, HybridDrafter) and isinstance(shape, Tree):
            shape = self.drafter.fit([_state(r) for r in requests], shape)
        draft, tree = self._draft(requests, shape, rule, laws)
        if isinstance(tree, Tree):
            draft = lead([r.grammar for r in requests], draft, tree)
        size = tree.nodes + 1
        roots = torch.tensor([[r.tokens[-1]] for r in requests])
        nodes = torch.cat([roots, draft.tokens.clamp_min(0)], dim=1)
        positions = torch.tensor(starts)[:, None] + tree.depth
        store = self.cache.step([_table(r) for r in requests], starts, [size] * len(requests))
        mask = tree.mask.to(self.device) if size > 1 else None
        out = self.forward(nodes.to(self.device), positions.to(self.device), store, mask, self.aux_layers)
        found = out.logits.to(
            "cpu"
        )  # on a device, steps that need nothing from the host are those of decoding/device_step.py
        logits = self._penalised(requests, found, draft, tree)
        allowed = self._allowed(requests, tree, draft)
        if allowed is not None:
            logits = allow(logits, allowed)
        if simulated is None:
            accepted = self._verify(requests, logits, laws, draft, tree, rule)
        else:
            seeds, lengths = [r.seed for r in requests], [len(r.tokens) for r in requests]
            coins = uniforms(seeds, lengths, [ACCEPT], max(1, tree.height))[:, 0]
            accepted = simulate(logits, draft, tree, coins, simulated)
            for request in requests:
                request.stats.simulated = True
        paths, emitted = [], []
        for path, length, bonus, row in zip(
            accepted.path.tolist(), accepted.length.tolist(), accepted.bonus.tolist(), nodes.tolist()
        ):
            paths.append(path[: length + 1])
            emitted.append([*(row[node] for node in path[1 : length + 1]), bonus])
        for request, path, guessed in zip(requests, paths, (draft.tokens >= 0).sum(-1).tolist()):
            request.stats.count(len(path) - 1, guessed, tree.height)
        logprobs = [self._logprobs(r, found[b], p, e) for b, (r, p, e) in enumerate(zip(requests, paths, emitted))]
        return Step(requests, starts, paths, emitted, logprobs, self.features(out), tree.nodes > 0)

    @torch.inference_mode()
    def commit(self, step: Step, alive: Sequence[int]) -> None:
        """Keeps the accepted rows of the requests that go on (their tokens are appended already); drops all others."""
        if not alive:
            return
        requests = [step.requests[b] for b in alive]
        paths = [step.paths[b] for b in alive]
        self.cache.keep([_table(r) for r in requests], [step.starts[b] for b in alive], paths)
        for request, path in zip(requests, paths):
            request.rows += len(path)
        if self.drafter is None:
            return
        for b, request in zip(alive, requests):
            rows, all_rows = step.paths[b], step.features
            kept = None if all_rows is None else all_rows[b, :1] if len(rows) == 1 else all_rows[b, rows]
            _state(request).waiting.append((step.emitted[b], kept))
        if step.drafted:  # else it may be long until the next draft: a batch too large to speculate pays nothing for it
            self.catch_up(requests)

    def catch_up(self, requests: Sequence[Request]) -> None:
        """Gives the drafter the rows that it does not have yet."""
        if self.drafter is None:
            return
        states = [state for r in requests if (state := _state(r)).waiting]
        if not states:
            return
        counts = [sum(len(tokens) for tokens, _ in state.waiting) for state in states]
        rows = [row for state in states for row in state.waiting]
        features = [feature for _, feature in rows if feature is not None]
        tokens = torch.tensor([token for tokens, _ in rows for token in tokens])
        self.drafter.extend(states, counts, tokens, torch.cat(features) if features else None)
        for state in states:
            state.waiting.clear()

    def _draft(
        self, requests: list[Request], tree: Tree | DynamicTree, rule: Rule, laws: Laws
    ) -> tuple[Draft, Tree | TreeBatch]:
        plain = tree if isinstance(tree, Tree) else Tree.chain(0)
        nothing = Draft(torch.full((len(requests), plain.nodes), -1)), plain
        if self.drafter is None or tree.nodes == 0:
            return nothing
        # A text of one token has no row yet from which anything could be drafted.
        able = [b for b, r in enumerate(requests) if len(r.tokens) > 1]
        if not able:
            return nothing
        seeds, positions = [requests[b].seed for b in able], [len(requests[b].tokens) for b in able]

        def numbers(slots: Tensor, width: int) -> Tensor:
            return uniforms(seeds, positions, (DRAFT + slots).tolist(), width)

        self.catch_up([requests[b] for b in able])
        states = [_state(requests[b]) for b in able]
        if isinstance(tree, DynamicTree):
            hybrid = isinstance(self.drafter, HybridDrafter)
            own_states = [own_part(state) for state in states] if hybrid else states
            draft, trees = draft_dynamic(_network(self.drafter), own_states, tree)
            if len(able) < len(requests):
                parents = trees.parents.new_zeros(len(requests), trees.nodes + 1)
                parents[able] = trees.parents
                draft, trees = _spread(draft, able, len(requests)), TreeBatch(parents, trees.height)
            return draft, trees
        draft = self.drafter.draft(states, tree, rule, laws.temperature[able], numbers).cpu()
        return draft if len(able) == len(requests) else _spread(draft, able, len(requests)), tree

    def _verify(
        self, requests: list[Request], logits: Tensor, laws: Laws, draft: Draft, tree: Tree | TreeBatch, rule: Rule
    ) -> Accepted:
        if laws.greedy:
            return verify_greedy(logits, draft, tree)
        purposes = [*(ACCEPT + rank for rank in range(tree.siblings)), BONUS]
        seeds = [r.seed for r in requests]
        levels = [
            uniforms(seeds, [len(r.tokens) + depth for r in requests], purposes)[:, :, 0]
            for depth in range(tree.height + 1)
        ]
        return verify_sampled(logits, laws, draft, tree, torch.stack(levels, dim=1), rule)

    def _penalised(self, requests: list[Request], logits: Tensor, draft: Draft, tree: Tree | TreeBatch) -> Tensor:
        """The logits with what each request takes off for tokens that stand before a node."""
        if not any(r.params.penalised for r in requests):
            return logits
        rows = list(logits.float().unbind())
        for b, request in enumerate(requests):
            if request.params.penalised:
                mask = tree.mask[b, 0] if isinstance(tree, TreeBatch) else tree.mask
                rows[b] = penalise(
                    rows[b], request.params, request.tokens, request.prompt_length, draft.tokens[b], mask
                )
        return torch.stack(rows)

    def _allowed(self, requests: list[Request], tree: Tree | TreeBatch, draft: Draft) -> Bool[Tensor, "B N V"] | None:
        """What the requests' grammars allow after every node; None when there are none."""
        if all(r.grammar is None for r in requests):
            return None
        allowed = torch.ones(len(requests), tree.nodes + 1, self.model.config.vocabulary, dtype=torch.bool)
        for b, request in enumerate(requests):
            if request.grammar is not None:
                own = tree.one(b) if isinstance(tree, TreeBatch) else tree
                allowed[b] = request.grammar.allowed(own, draft.tokens[b])
        return allowed

    def _logprobs(self, request: Request, logits: Tensor, path: list[int], emitted: list[int]) -> list[Logprob]:
        wanted = request.params.logprobs
        if wanted is None:
            return []
        logs = logits[path].float().log_softmax(-1)
        best = logs.topk(max(1, wanted), dim=-1)
        rows = zip(emitted, logs, best.indices.tolist(), best.values.tolist())
        return [Logprob(t, float(row[t]), tuple(zip(ids, values))[:wanted]) for t, row, ids, values in rows]

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """Layers of the target whose inputs the drafter wants."""
        return self.drafter.aux_layers if self.drafter and self.drafter.features == "aux" else ()

    def features(self, out: Output) -> Float[Tensor, "B N F"] | None:
        """What the drafter wants of a pass."""
        kind = self.drafter.features if self.drafter else "none"
        return {"none": None, "aux": out.aux, "hidden": out.hidden}[kind]


def _spread(draft: Draft, able: list[int], batch: int) -> Draft:
    """A draft for some of the requests as one for all: the others have no guesses."""

    def wide(part: Tensor | None, empty: float) -> Tensor | None:
        if part is None:
            return None
        whole = part.new_full((batch, *part.shape[1:]), empty)
        whole[able] = part
        return whole

    tokens = wide(draft.tokens, -1)
    assert tokens is not None
    return Draft(tokens, wide(draft.q, 0), draft.ids, wide(draft.point, False))


def _table(request: Request) -> PageTable:
    assert request.table is not None, "a request without pages"
    return request.table


def _state(request: Request) -> DraftState:
    assert request.draft is not None, "a request without a drafter's state"
    return request.draft


def _network(drafter: Drafter) -> TreeDrafter:
    """The trained drafter, alone or beside look-up."""
    own = drafter.drafter if isinstance(drafter, HybridDrafter) else drafter
    if not isinstance(own, TreeDrafter):
        raise UsageError(
            'a dynamic tree grows by a trained drafter\'s confidence; this one has none. Give tree="auto".'
        )
    return own

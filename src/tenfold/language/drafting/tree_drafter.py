"""EAGLE tree drafting: a drafter network with its KV cache in pages drafts trees level by level for all requests at once.

    drafter = TreeDrafter(network, target)              a `Drafter` (drafting/protocol.py), which the engine calls
    drafter.extend(states, counts, tokens, features)    new rows from the target's true features
    draft = drafter.draft(states, tree, "top_k", temperatures, uniforms)

A level is one pass of the network over its inner nodes, for all requests: what a node sees of its own branch is the tree's
mask, and the rows written while drafting are behind the text's and are overwritten by the next `extend`. Nodes differ only
in index tensors that the tree made once, so no Python runs per node.

How siblings are chosen, which verification must know (drafting/rejection.py):
    top_k                the most likely tokens (point masses)
    independent          drawn independently from q
    without_replacement  drawn without replacement (Gumbel top-k: the largest log q + G with G standard Gumbel; arXiv
                         1903.06059), in the order of their keys

A step that stays on the device (decoding/device_step.py) drafts by the same levels; only where rows are is said by tensors.

    B requests   m inner nodes of a level   n nodes   P inner nodes   M new rows together   W draft vocabulary   H width
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenfold.inference.device_pages import DeviceStep
from tenfold.inference.pages import PageAllocator, PagedCache, PagedStep
from tenfold.kernels import decode
from tenfold.kernels.packed import Int8Linear, TiledLinear
from tenfold.language.drafting.drafter import EagleDrafter, Stores
from tenfold.language.drafting.dynamic import draft_dynamic
from tenfold.language.drafting.protocol import (
    DeviceRows,
    Draft,
    Drafter,
    DraftState,
    DraftTrees,
    Growth,
    ResidentDrafter,
    Rule,
    Uniforms,
)
from tenfold.language.drafting.tree import Level, Tree
from tenfold.language.models.llama import Llama
from tenfold.language.sampling.sampling import heated

Expand = Callable[[Level, Level, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(level, the following one, hidden of `level`, tokens so far) -> hidden and logits of the following one's inner nodes."""


class TreeDrafter(Drafter):
    """A network and its target's embedding: the drafter of EAGLE-1 and EAGLE-3."""

    has_distribution = True

    def __init__(self, network: EagleDrafter, target: Llama) -> None:
        self.network = network.eval().requires_grad_(False)
        network.bind(target)
        self.features, self.aux_layers = network.reads(target)
        self.trained_for = network.config.target
        weight = network.get_submodule("fc").weight
        assert isinstance(weight, Tensor)
        self.dtype = weight.dtype if weight.dtype.is_floating_point else torch.bfloat16
        self.device = weight.device
        self.embedding = target.embedding if network.embedding is None else network.embedding
        self.cache: PagedCache | None = None
        self.stack = network.compiled()

    def open(self, pages: int, page_size: int) -> PagedCache:
        self.cache = self._cache(pages, page_size)
        return self.cache

    def _cache(self, pages: int, page_size: int) -> PagedCache:
        c = self.network.config
        return PagedCache(c.layers, c.kv_heads, c.width, pages, page_size, self.dtype, self.device)

    @property
    def window(self) -> int | None:
        """Rows that a row sees, itself among them; None is all before it."""
        return self.network.config.sliding_window

    def target_ids(self, ids: Int[Tensor, "*b"]) -> Int[Tensor, "*b"]:
        """The target's ids of draft ids."""
        return self.network.target_ids(ids)

    @torch.no_grad()
    def extend(
        self,
        states: Sequence[DraftState],
        counts: Sequence[int],
        tokens: Int[Tensor, " M"],
        features: Float[Tensor, "M F"] | None,
    ) -> None:
        assert self.cache is not None
        assert features is not None
        starts = [state.rows for state in states]
        window = self.window
        lows = None if window is None else [max(0, start - window + 1) for start in starts]
        step = self.cache.step([state.table for state in states], starts, counts, lows, window)
        positions = torch.cat([torch.arange(start, start + count) for start, count in zip(starts, counts)])
        last = torch.tensor(counts).to(self.device).cumsum(0) - 1
        fused = self.fuse(features.to(self.device))[None]
        feed, logits = self.run(self.embed(tokens)[None], fused, positions.to(self.device)[None], step, None, last)
        for b, request in enumerate(states):
            request.carry = (feed[b], logits[b])
            request.rows += counts[b]

    @torch.no_grad()
    def draft(
        self,
        states: Sequence[DraftState],
        tree: Tree,
        rule: Rule,
        temperatures: Float[Tensor, " B"],
        uniforms: Uniforms,
    ) -> Draft:
        hidden = torch.stack([state.carry[0] for state in states])[:, None]
        logits = torch.stack([state.carry[1] for state in states])[:, None].float()
        sampled = rule != "top_k" and bool((temperatures > 0).any())
        greedy = sampled and bool((temperatures == 0).any())
        return self.grow(
            hidden,
            logits,
            tree,
            rule=rule if sampled else "top_k",
            temperatures=temperatures.to(self.device),
            greedy=greedy,
            uniforms=uniforms,
            expand=functools.partial(self.expand_on_host, states),
        )

    def draft_dynamic(self, states: Sequence[DraftState], growth: Growth) -> tuple[Draft, DraftTrees]:
        return draft_dynamic(self, states, growth)

    def grow(
        self,
        hidden: Float[Tensor, "B 1 H"],
        logits: Float[Tensor, "B 1 W"],
        tree: Tree,
        *,
        rule: Rule,
        temperatures: Float[Tensor, " B"],
        greedy: bool,
        uniforms: Uniforms,
        expand: Expand,
    ) -> Draft:
        """The tree, level by level, from the last row's state and logits. greedy: some requests have temperature 0. expand runs
        the network over the inner nodes of a level. Waits for no device."""
        tree = tree.on(self.device)
        tokens = torch.full((len(hidden), tree.nodes), -1, device=self.device)
        every_q = []
        for level, following in zip(tree.levels, [*tree.levels[1:], None]):
            q = self._probabilities(logits, temperatures) if rule != "top_k" else None
            ranked = self._choose(level, logits, q, rule, temperatures, uniforms)
            chosen = ranked[:, level.owner, level.rank]
            chosen = torch.where(chosen < 0, chosen, self.network.target_ids(chosen.clamp_min(0)))
            if level.depth > 0:  # behind a node that stayed empty all stay empty
                parents = tokens[:, level.inner - 1][:, level.owner]
                chosen = torch.where(parents < 0, parents, chosen)
            tokens[:, level.children - 1] = chosen
            if q is not None:
                every_q.append(q)
            if following is not None:
                hidden, logits = expand(level, following, hidden, tokens)
        if rule == "top_k":
            return Draft(tokens)
        point = (temperatures == 0)[:, None].expand(-1, tree.nodes) if greedy else None
        return Draft(
            tokens, torch.cat(every_q, dim=1), self.network.ids if self.network.config.reduced else None, point
        )

    def expand_on_host(
        self, states: Sequence[DraftState], level: Level, following: Level, hidden: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`expand` where the host knows the rows of every request."""
        assert self.cache is not None
        window, depth, fresh = self.window, following.depth, len(following.inner)
        before = following.mask.shape[1] - fresh  # rows of the levels between
        rows = [state.rows for state in states]
        lows = None if window is None else [max(0, r + depth - window) for r in rows]
        starts, tables = [r + before for r in rows], [state.table for state in states]
        step = self.cache.step(tables, starts, [fresh] * len(states), lows)
        return self.expand(level, following, hidden, tokens, torch.tensor(rows).to(self.device), step)

    def expand(
        self, level: Level, following: Level, hidden: Tensor, tokens: Tensor, rows: Int[Tensor, " B"], step: Stores
    ) -> tuple[Tensor, Tensor]:
        """Runs the inner nodes of the next level: row k of the drafter behind a text of L tokens is at L - 2 + k."""
        fresh = len(following.inner)
        parents = following.parents_inner_rows - level.inner_rows[0]
        positions = (rows[:, None] + (following.depth - 1)).expand(-1, fresh)
        embeds = self.embed(tokens[:, following.inner - 1].clamp_min(0))
        every = torch.arange(len(rows) * fresh, device=self.device)
        feed, logits = self.run(embeds, hidden[:, parents], positions, step, following.mask, every)
        return feed.unflatten(0, (-1, fresh)), logits.float().unflatten(0, (-1, fresh))

    def fuse(self, features: Float[Tensor, "M F"]) -> Float[Tensor, "M H"]:
        """The first hidden state of rows, from the target's features."""
        if self.stack is not None and isinstance(fc := self.network.get_submodule("fc"), TiledLinear | Int8Linear):
            return decode.linear(fc.native, features)
        return self.network.fuse(features.to(self.dtype))

    def run(
        self, embeds: Tensor, hidden: Tensor, positions: Tensor, step: Stores, mask: Tensor | None, read: Tensor
    ) -> tuple[Float[Tensor, "m H"], Float[Tensor, "m W"]]:
        """The state for the next level, and the logits, of the rows `read` of all (B N)."""
        if self.stack is None:
            state = self.network.advance(embeds, hidden, positions, step, mask).flatten(0, 1)[read]
            return self.network.feed(state), self.network.logits(state)
        assert isinstance(step, PagedStep)
        rotation = self.network.rope(positions)
        out = self.stack.run(hidden.flatten(0, 1), rotation, step, mask, side=embeds.flatten(0, 1), read=read)
        assert out.logits is not None
        return (out.hidden if self.network.config.norm_output else out.x)[read], out.logits

    def embed(self, tokens: Tensor) -> Tensor:
        """The rows of tokens in the embedding that the drafter reads."""
        return self.embedding(tokens.to(self.device)).to(self.dtype)

    def _probabilities(
        self, logits: Float[Tensor, "B m W"], temperatures: Float[Tensor, " B"]
    ) -> Float[Tensor, "B m W"]:
        """q of every inner node: the drafter's own temperature is the request's."""
        heat = temperatures.where(temperatures > 0, 1.0)
        return heated(logits, heat[:, None, None])

    def _choose(
        self,
        level: Level,
        logits: Float[Tensor, "B m W"],
        q: Float[Tensor, "B m W"] | None,
        rule: Rule,
        temperatures: Float[Tensor, " B"],
        uniforms: Uniforms,
    ) -> Int[Tensor, "B m R"]:
        """Draft ids of every inner node's children by rank; -1 where q has no mass left."""
        width = min(level.width, logits.shape[-1])
        best = logits.topk(width, dim=-1).indices
        if level.width > width:
            best = torch.nn.functional.pad(best, (0, level.width - width), value=-1)
        if q is None:
            return best
        if rule == "independent":
            draws = uniforms(level.inner, level.width).to(self.device)
            cumulative = q.cumsum(-1)
            drawn = torch.searchsorted(cumulative, draws * cumulative[..., -1:]).clamp_max(q.shape[-1] - 1)
        else:
            noise = uniforms(level.inner, q.shape[-1]).to(self.device)
            keys, drawn = (q.log() - (-noise.log()).log()).topk(width, dim=-1)
            drawn = torch.where(keys > -torch.inf, drawn, -1)
            if level.width > width:
                drawn = torch.nn.functional.pad(drawn, (0, level.width - width), value=-1)
        greedy = (temperatures == 0)[:, None, None]
        return torch.where(greedy, best, drawn)

    def resident(self) -> ResidentDrafter:
        return self

    def reserve(self, rows: int) -> None:
        self.network.rope.reserve(rows)

    def follows(self, tree: Tree) -> bool:
        """Where the window is longer than a branch, every row of it sees its whole branch."""
        return self.window is None or self.window > tree.height

    def draft_resident(
        self,
        carry: tuple[Tensor, Tensor],
        tree: Tree,
        rows: DeviceRows,
        *,
        rule: Rule,
        temperatures: Float[Tensor, " B"],
        greedy: bool,
        uniforms: Uniforms,
    ) -> Draft:
        cache, starts = self.cache, rows.starts
        assert cache is not None

        def expand(level: Level, following: Level, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
            fresh = len(following.inner)
            place = torch.zeros(fresh, dtype=torch.int64, device=self.device)
            lows = self._lows(starts + following.depth - 1, place)
            before = following.mask.shape[1] - fresh
            view = DeviceStep(cache, rows.tables, rows.size, prefix=starts, before=before, count=fresh, lows=lows)
            return self.expand(level, following, hidden, tokens, starts, view)  # type: ignore[arg-type]

        hidden, logits = (part[:, None] for part in carry)
        return self.grow(
            hidden,
            logits.float(),
            tree,
            rule=rule,
            temperatures=temperatures,
            greedy=greedy,
            uniforms=uniforms,
            expand=expand,
        )

    def extend_resident(
        self, tokens: Int[Tensor, "B K"], features: Float[Tensor, "B K F"], rows: DeviceRows, *, last: Int[Tensor, " B"]
    ) -> tuple[Tensor, Tensor]:
        assert self.cache is not None
        batch, places = tokens.shape
        starts, place = rows.starts, torch.arange(places, device=self.device)
        lows = self._lows(starts, place)
        view = DeviceStep(self.cache, rows.tables, rows.size, prefix=starts, before=0, count=places, lows=lows)
        fused = self.fuse(features.flatten(0, 1)).unflatten(0, (batch, places))
        read = torch.arange(batch, device=self.device) * places + last
        return self.run(self.embed(tokens), fused, starts[:, None] + place, view, None, read)  # type: ignore[arg-type]

    def _lows(self, first: Int[Tensor, " B"], place: Int[Tensor, " n"]) -> Int[Tensor, "B n"] | None:
        """The first row that the rows at first[b] + place[i] see."""
        return None if self.window is None else (first[:, None] + place - self.window + 1).clamp_min(0)

    def fingerprint(self) -> str:
        """SHA-256 over the sizes and what packing leaves of the weights (norms, ids)."""
        found = hashlib.sha256(repr(self.network.config).encode())
        state = self.network.state_dict()
        for name in sorted(state):
            found.update(name.encode())
            found.update(state[name].detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return found.hexdigest()[:16]

    @torch.inference_mode()
    def level_pass(self, batch: int, rows: int, text: int) -> Callable[[], object]:
        size, c = 16, self.network.config
        pages = PageAllocator(batch * -(-(text + rows) // size), size)
        cache = self._cache(pages.count, size)
        tables = [pages.open(text + rows) for _ in range(batch)]
        for table in tables:
            pages.cover(table, text + rows)
        tokens = torch.randint(c.vocabulary, (batch, rows))
        hidden = torch.randn(batch, rows, c.dim, dtype=self.dtype)
        positions = torch.full((batch, rows), text)
        mask, every = torch.eye(rows, dtype=torch.bool), torch.arange(batch * rows)

        def once() -> object:
            step = cache.step(tables, [text] * batch, [rows] * batch)
            logits = self.run(self.embed(tokens), hidden, positions, step, mask, every)[1]
            return logits.float().topk(min(8, c.draft_vocabulary), dim=-1)

        return once

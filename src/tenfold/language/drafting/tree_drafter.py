"""An EAGLE drafter at work: rows kept in pages, trees drafted level by level for all requests at once.

    drafter = TreeDrafter(network, target)              a `Drafter` (drafting/protocol.py), which the engine calls
    drafter.extend(states, counts, tokens, features)    new rows from the target's true features
    draft = drafter.draft(states, tree, "A", temperatures, uniforms)

A level is one pass of the network over its inner nodes, for all requests: what a node sees of its own branch is the tree's
mask, and the rows written while drafting lie behind the text's and are overwritten by the next `extend`. Nodes differ only
in index tensors that the tree made once, so no Python runs per node.

How siblings are chosen, which verification must know (drafting/rejection.py):
    A  the most likely tokens (point masses)    B  drawn independently from q    C  drawn without replacement (Gumbel
    top-k: the largest log q + G with G standard Gumbel; arXiv 1903.06059), in the order of their keys

    B requests   m inner nodes of a level   n nodes   P inner nodes   M new rows together   W draft vocabulary   H width
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenfold.inference.pages import PagedCache, PagedStep
from tenfold.inference.stack import LayerParts, Stack
from tenfold.kernels import decode
from tenfold.kernels.packed import Int8Linear, TiledLinear
from tenfold.language.drafting.drafter import Eagle1Drafter, Eagle3Drafter, EagleDrafter, Stores, default_aux_layers
from tenfold.language.drafting.protocol import Draft, DraftState, Features, Rule, Uniforms
from tenfold.language.drafting.tree import Level, Tree
from tenfold.language.models.llama import Llama, check_aux_layers
from tenfold.language.sampling.sampling import heated

Kind = Literal["A", "B", "C"]
Expand = Callable[[Level, Level, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(level, the following one, hidden of `level`, tokens so far) -> hidden and logits of the following one's inner nodes."""


class TreeDrafter:
    """A network and its target's embedding. See the module's docstring."""

    features: Features
    aux_layers: tuple[int, ...]
    free_rows = 8  # rows of the target's pass that cost little more than one (drafting/speculation.py)

    def __init__(self, network: EagleDrafter, target: Llama) -> None:
        self.network, self.target = network.eval().requires_grad_(False), target
        if isinstance(network, Eagle1Drafter):
            network.bind(target)
            self.features, self.aux_layers = "hidden", ()
        else:
            self.features = "aux"
            self.aux_layers = network.config.aux_layers or default_aux_layers(target.config.depth)
            check_aux_layers(self.aux_layers, target.config.depth)
        weight = network.get_submodule("fc").weight
        assert isinstance(weight, Tensor)
        self.dtype = weight.dtype if weight.dtype.is_floating_point else torch.bfloat16
        self.device = weight.device
        self.embedding = target.embedding if network.embedding is None else network.embedding
        self.cache: PagedCache | None = None
        self.stack = compiled(network)

    def open(self, pages: int, page_size: int) -> PagedCache:
        c = self.network.config
        self.cache = PagedCache(c.layers, c.kv_heads, c.width, pages, page_size, self.dtype, self.device)
        return self.cache

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
        window = self.network.config.sliding_window
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
        sampled = rule != "A" and bool((temperatures > 0).any())
        greedy = sampled and bool((temperatures == 0).any())
        return self.grow(
            hidden, logits, tree, rule if sampled else "A", temperatures.to(self.device), greedy, uniforms,
            functools.partial(self._expand, states),
        )  # fmt: skip

    def grow(
        self,
        hidden: Float[Tensor, "B 1 H"],
        logits: Float[Tensor, "B 1 W"],
        tree: Tree,
        rule: Rule,
        temperatures: Float[Tensor, " B"],
        greedy: bool,
        uniforms: Uniforms,
        expand: Expand,
    ) -> Draft:
        """The tree, level by level, from the last row's state and law. greedy: some requests have temperature 0. expand runs
        the network over the inner nodes of a level. Waits for no device."""
        tree = tree.on(self.device)
        tokens = torch.full((len(hidden), tree.nodes), -1, device=self.device)
        laws = []
        for level, following in zip(tree.levels, [*tree.levels[1:], None]):
            law = self._law(logits, temperatures) if rule != "A" else None
            ranked = self._choose(level, logits, law, rule, temperatures, uniforms)
            chosen = ranked[:, level.owner, level.rank]
            chosen = torch.where(chosen < 0, chosen, self.network.target_ids(chosen.clamp_min(0)))
            if level.depth > 0:  # nothing stands behind a node that stayed empty
                parents = tokens[:, level.inner - 1][:, level.owner]
                chosen = torch.where(parents < 0, parents, chosen)
            tokens[:, level.children - 1] = chosen
            if law is not None:
                laws.append(law)
            if following is not None:
                hidden, logits = expand(level, following, hidden, tokens)
        if rule == "A":
            return Draft(tokens)
        point = (temperatures == 0)[:, None].expand(-1, tree.nodes) if greedy else None
        return Draft(tokens, torch.cat(laws, dim=1), self.network.ids if self.network.config.reduced else None, point)

    def _expand(
        self, states: Sequence[DraftState], level: Level, following: Level, hidden: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        assert self.cache is not None
        window, depth, fresh = self.network.config.sliding_window, following.depth, len(following.inner)
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
        """What goes on to the next level, and the logits, of the rows `read` of all (B N)."""
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

    def _law(self, logits: Float[Tensor, "B m W"], temperatures: Float[Tensor, " B"]) -> Float[Tensor, "B m W"]:
        """q of every inner node: the drafter's own temperature is the request's."""
        heat = temperatures.where(temperatures > 0, 1.0)
        return heated(logits, heat[:, None, None])

    def _choose(
        self,
        level: Level,
        logits: Float[Tensor, "B m W"],
        law: Float[Tensor, "B m W"] | None,
        rule: Kind,
        temperatures: Float[Tensor, " B"],
        uniforms: Uniforms,
    ) -> Int[Tensor, "B m R"]:
        """Draft ids of every inner node's children by rank; -1 where q has no mass left."""
        width = min(level.width, logits.shape[-1])
        best = logits.topk(width, dim=-1).indices
        if level.width > width:
            best = torch.nn.functional.pad(best, (0, level.width - width), value=-1)
        if law is None:
            return best
        if rule == "B":
            draws = uniforms(level.inner, level.width).to(self.device)
            cumulative = law.cumsum(-1)
            drawn = torch.searchsorted(cumulative, draws * cumulative[..., -1:]).clamp_max(law.shape[-1] - 1)
        else:
            noise = uniforms(level.inner, law.shape[-1]).to(self.device)
            keys, drawn = (law.log() - (-noise.log()).log()).topk(width, dim=-1)
            drawn = torch.where(keys > -torch.inf, drawn, -1)
            if level.width > width:
                drawn = torch.nn.functional.pad(drawn, (0, level.width - width), value=-1)
        greedy = (temperatures == 0)[:, None, None]
        return torch.where(greedy, best, drawn)


def compiled(network: EagleDrafter) -> Stack | None:
    """An EAGLE-3 network as one call of inference/stack.py, or None where it has no such form."""
    if not isinstance(network, Eagle3Drafter) or network.fc_norms is not None or network.first.before_residual:
        return None
    first = network.first
    attention, ffn = first.attention, first.ffn
    maps = LayerParts(
        first.hidden_norm, attention.qkv, attention.out, first.norm2, ffn.gate_up, ffn.down, first.embed_norm
    )
    layers = [maps, *(LayerParts.of(block) for block in network.blocks)]
    return Stack.of(layers, attention.config, network.norm, network.head)

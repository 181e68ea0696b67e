"""Llama: a stack of the shared block with grouped queries, RMSNorm, SwiGLU and rotary positions.

    model = Llama(LlamaConfig(vocabulary=49152, dim=576, hidden=1536, depth=30, heads=9, kv_heads=3))
    model(tokens).logits                                       tokens (B, N) -> logits (B, N, V)
    cache = model.new_cache(batch=1)
    model(prompt, cache=cache); model(next_token, cache=cache)                  only the new tokens are computed
    model(nodes, positions, cache, tree_mask=tree.mask)                         a tree of guesses, checked in one pass

Llama 2 and 3: arXiv 2307.09288, 2407.21783.

    B batch   N new tokens   D width   V vocabulary   F width of the auxiliary features (D times their number)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tenfold.config import require
from tenfold.errors import UsageError
from tenfold.inference.kv_cache import Cache
from tenfold.language.feed_forward import check_feed_forward, feed_forward
from tenfold.nn.attention import AttentionConfig, KeyValues
from tenfold.nn.block import Block, BlockConfig
from tenfold.nn.memory import MemoryLayer, QueryKeyNorm, Variant
from tenfold.nn.norm import RMSNorm
from tenfold.nn.rope import RopeScaling, TextRope


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes and switches. `tied`: the output projection is the embedding. `context` is what the model was trained for;
    it bounds nothing here."""

    vocabulary: int = 32000
    dim: int = 4096
    hidden: int = 11008
    depth: int = 32
    heads: int = 32
    kv_heads: int = 32
    head_dim: int | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    context: int = 4096
    tied: bool = False
    attention_bias: bool = False
    ffn_bias: bool = False
    activation: Literal["swiglu", "relu2"] = "swiglu"  # of the feed-forward networks
    sparsity: Literal["none", "2:4"] = "none"  # 2:4: may train sparse (nn/sparse24.py); needs relu2
    experts: int = 0  # relu2 networks of a block, of which a token takes the best; 0 is one network without a router
    experts_top_k: int = 1
    memory_layers: tuple[int, ...] = ()  # blocks (0-based) whose feed-forward network is a lookup in one shared table
    memory_side: int = 256  # sub-keys of each half; the table has their square in slots
    memory_heads: int = 4
    memory_top_k: int = 32
    memory_key_dim: int = 512
    memory_variant: Variant = "plus"
    qk_norm: QueryKeyNorm = "query"

    def __post_init__(self) -> None:
        for name in ("vocabulary", "dim", "hidden", "depth", "heads", "kv_heads", "context"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "a whole number >= 1")
        require(self.heads % self.kv_heads == 0, "model.kv_heads", self.kv_heads, f"a divisor of heads = {self.heads}")
        require(self.head_dim is not None or self.dim % self.heads == 0, "model.heads", self.heads, "a divisor of dim")
        require(self.width % 2 == 0, "model.head_dim", self.width, "an even number")
        require(self.rope_theta > 0, "model.rope_theta", self.rope_theta, "a number > 0")
        check_feed_forward(self)

    @property
    def width(self) -> int:
        """Width of a head."""
        return self.head_dim or self.dim // self.heads


@dataclass(frozen=True)
class Output:
    """logits (B, N, V), or (M, V) for M rows asked for; aux (B, N, F), or None; hidden (B, N, D) after the final norm."""

    logits: Tensor
    aux: Tensor | None
    hidden: Tensor


@runtime_checkable
class LayerStores(Protocol):
    """Keys and values of every layer, and the number of tokens held: `Cache`, or a view of pages for one step."""

    @property
    def layers(self) -> Sequence[KeyValues]: ...

    @property
    def length(self) -> int: ...


class Llama(nn.Module):
    """See the module's docstring."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = c = config
        attention = AttentionConfig(
            c.dim, c.heads, c.kv_heads, c.width, qkv_bias=c.attention_bias, out_bias=c.attention_bias, causal=True
        )
        block = BlockConfig(attention, norm="rms", norm_eps=c.norm_eps)
        self.embedding = nn.Embedding(c.vocabulary, c.dim)
        self.rope = TextRope(c.width, c.rope_theta, c.rope_scaling)
        self.memory, networks = feed_forward(c)
        self.blocks = nn.ModuleList(Block(block, network) for network in networks)
        self.norm = RMSNorm(c.dim, c.norm_eps)
        self.head: nn.Module | None = None if c.tied else nn.Linear(c.dim, c.vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, MemoryLayer):
                module.reset_parameters()

    def forward(
        self,
        tokens: Int[Tensor, "b n"],
        positions: Int[Tensor, "b n"] | None = None,
        cache: LayerStores | None = None,
        tree_mask: Bool[Tensor, "*each n s"] | None = None,
        aux_layers: Sequence[int] = (),
        logit_rows: Int[Tensor, " m"] | None = None,
    ) -> Output:
        """Logits of the token after each of these.

        positions: of the tokens, for their rotation; by default they follow those in `cache` (or start at 0).
        cache: what was computed before; the new tokens are added to it.
        tree_mask: what the new tokens see among the last S tokens (True: visible), (N, S) or (B, 1, N, S); by default those up
        to themselves.
        aux_layers: the inputs of these layers are returned too, side by side, before any norm (EAGLE-3's features).
        logit_rows: rows of the flattened (B N) tokens whose logits are wanted, in this order; by default all.
        """
        if tokens.numel() == 0:
            raise UsageError(f"tokens have the shape {tuple(tokens.shape)}; at least one token is needed.")
        check_aux_layers(aux_layers, self.config.depth)
        if positions is None:
            start = cache.length if cache else 0
            rotation = self.rope(torch.arange(start, start + tokens.shape[1], device=tokens.device))
        else:
            rotation = self.rope(positions)
        x = self.embedding(tokens)
        features = {}
        for i, block in enumerate(self.blocks):
            if i in aux_layers:
                features[i] = x
            x = block(x, rotation, tree_mask, cache.layers[i] if cache else None)
        hidden = self.norm(x)
        aux = torch.cat([features[i] for i in aux_layers], dim=-1) if aux_layers else None
        read = hidden if logit_rows is None else hidden.flatten(0, 1)[logit_rows]
        logits = self.logits(read) if len(read) else read.new_empty(0, self.config.vocabulary)
        return Output(logits, aux, hidden)

    def logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
        """The output projection alone, of states after the final norm."""
        return F.linear(hidden, self.embedding.weight) if self.head is None else self.head(hidden)

    def new_cache(self, batch: int, capacity: int = 256) -> Cache:
        """An empty cache for `batch` sequences, in the model's number format; it grows when it is full."""
        weight, c = self.embedding.weight, self.config
        return Cache(c.depth, batch, c.kv_heads, c.width, capacity, weight.dtype, weight.device)


def check_aux_layers(layers: Sequence[int], depth: int) -> None:
    """Raises UsageError unless every entry names a layer of a model of this depth."""
    wrong = [i for i in layers if not 0 <= i < depth]
    if wrong:
        raise UsageError(f"auxiliary layers {list(layers)}: allowed are 0 to {depth - 1}, the layers of this model.")

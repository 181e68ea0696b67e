"""Llama: a stack of the shared block with grouped queries, RMSNorm, SwiGLU and rotary positions.

    model = Llama(LlamaConfig(vocabulary=49152, dim=576, hidden=1536, depth=30, heads=9, kv_heads=3))
    model(tokens).logits                                       tokens (B, N) -> logits (B, N, V)
    cache = model.new_cache(batch=1)
    model(prompt, cache=cache); model(next_token, cache=cache)                  only the new tokens are computed
    model(nodes, positions, cache, tree_mask=tree.mask)                         a tree of draft tokens, verified in one pass

Llama 2 and 3: arXiv 2307.09288, 2407.21783.

    B batch   N new tokens   D width   V vocabulary   F width of the auxiliary features (D times their number)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tenfold.errors import UsageError
from tenfold.inference.kv_cache import Cache
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.feed_forward import feed_forward
from tenfold.nn.attention import AttentionConfig, KeyValues
from tenfold.nn.block import Block, BlockConfig
from tenfold.nn.ffn import SquaredReLUFFN
from tenfold.nn.memory import MemoryLayer
from tenfold.nn.norm import RMSNorm
from tenfold.nn.rope import TextRope


@dataclass(frozen=True)
class Output:
    """logits (B, N, V), or (M, V) for M rows asked for; aux (B, N, F), or None; hidden (B, N, D) after the final norm."""

    logits: Tensor
    aux: Tensor | None
    hidden: Tensor


@runtime_checkable
class LayerStores(Protocol):
    """The KV cache of every layer, and the number of tokens held: `Cache`, or a view of pages for one step."""

    @property
    def layers(self) -> Sequence[KeyValues]: ...

    @property
    def length(self) -> int: ...


class Llama(nn.Module):
    """Embedding, blocks, last norm and head. Called with tokens (B, N), it gives LlamaOutput."""

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
        """The output projection of states after the final norm."""
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


# For a standard normal x: E[relu(x)^4] = 3/2, and E[silu(x)^2] E[x^2] = 0.3556.
SQUARED_GAIN = (0.3556 / 1.5) ** 0.25


def initialise_by_width(model: Llama, squared_gain: float | None = None) -> None:
    """Matrices of standard deviation (inputs)^-1/2 and an embedding of d^-1/2, as in the released memory-layer code; those
    that write to the residual stream smaller by (2 depth)^-1/2, as in GPT-2. Llama's 0.02 suits widths near 2,500; narrow
    models learn more slowly from it, and in one with memory layers the embedding drowns in what they add, so that every token
    reads the same slots. Squared-ReLU's first matrix is smaller by 0.7, so that its hidden units begin with the second moment
    of SwiGLU's, but not beside memory layers, which then learn more slowly; `squared_gain` says otherwise. docs/LOG.md has
    what each of these did."""
    gain = (1.0 if model.config.memory_layers else SQUARED_GAIN) if squared_gain is None else squared_gain
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            writes = name.endswith((".attention.out", ".down"))
            nn.init.normal_(module.weight, std=(module.in_features * (2 * model.config.depth if writes else 1)) ** -0.5)
    for module in model.modules():
        if isinstance(module, SquaredReLUFFN):
            with torch.no_grad():
                module.up.weight.mul_(gain)
    nn.init.normal_(model.embedding.weight, std=model.config.dim**-0.5)
    for module in model.modules():
        if isinstance(module, MemoryLayer):
            module.reset_parameters()

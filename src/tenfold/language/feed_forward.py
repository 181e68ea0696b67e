"""The feed-forward networks of a Llama, as its configuration names them.

    table, networks = feed_forward(config)         networks[i] goes into block i; the table, if any, into `memory`

`activation`, `sparsity` and `experts` are the kind of all blocks but those in `memory_layers`, which share one table
(nn/memory.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from tenfold.config import require
from tenfold.nn.ffn import ExpertFFN, SquaredReLUFFN, SwiGLUFFN
from tenfold.nn.memory import ExpertTable, MemoryLayer, MemoryTable
from tenfold.nn.sparse24 import Sparsity24

if TYPE_CHECKING:
    from tenfold.language.llama import Llama, LlamaConfig


def feed_forward(config: LlamaConfig) -> tuple[MemoryTable | ExpertTable | None, list[nn.Module]]:
    """The shared table (None without memory layers) and the network of every block."""
    c = config
    table: MemoryTable | ExpertTable | None = None
    if c.memory_layers:
        table = (ExpertTable if c.memory_variant == "peer" else MemoryTable)(c.memory_side, c.dim)
    networks: list[nn.Module] = []
    for i in range(c.depth):
        if table is not None and i in c.memory_layers:
            networks.append(
                MemoryLayer(
                    c.dim,
                    table,
                    heads=c.memory_heads,
                    top_k=c.memory_top_k,
                    key_dim=c.memory_key_dim,
                    variant=c.memory_variant,
                    qk_norm=c.qk_norm,
                )
            )
        else:
            networks.append(_plain(c))
    return table, networks


# For a standard normal x: E[relu(x)^4] = 3/2, and E[silu(x)^2] E[x^2] = 0.3556.
SQUARED_GAIN = (0.3556 / 1.5) ** 0.25


def initialise_by_width(model: Llama, squared_gain: float | None = None) -> None:
    """Matrices of deviation (inputs)^-1/2 and an embedding of d^-1/2, as in the released memory-layer code; those that write
    to the residual stream smaller by (2 depth)^-1/2, as in GPT-2. Llama's 0.02 suits widths near 2,500; narrow models learn
    more slowly from it, and in one with memory layers the embedding drowns in what they add, so that every token reads the
    same slots. Squared-ReLU's first matrix is smaller by 0.7, so that its hidden units begin with the second moment of
    SwiGLU's, but not beside memory layers, which then learn more slowly; `squared_gain` says otherwise. docs/LOG.md has what
    each of these did."""
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


def _plain(c: LlamaConfig) -> nn.Module:
    if c.experts:
        return ExpertFFN(c.dim, c.hidden, c.experts, c.experts_top_k)
    if c.activation == "relu2":
        sparsity = Sparsity24() if c.sparsity == "2:4" else None
        return SquaredReLUFFN(c.dim, c.hidden, bias=c.ffn_bias, sparsity=sparsity)
    return SwiGLUFFN(c.dim, c.hidden, bias=c.ffn_bias)


def check_feed_forward(config: LlamaConfig) -> None:
    """Raises FieldError for networks that cannot be."""
    c = config
    words = "none, or activation relu2 without biases and experts (2:4 needs exact zeros: arXiv 2503.16672)"
    plain = c.activation == "relu2" and not c.ffn_bias and not c.experts
    require(c.sparsity == "none" or plain, "model.sparsity", c.sparsity, words)
    words = "0 (one network), or a whole number >= 1 with activation relu2 and without biases"
    plain = c.activation == "relu2" and not c.ffn_bias
    require(c.experts == 0 or (c.experts >= 1 and plain), "model.experts", c.experts, words)
    few = f"1 to experts = {c.experts}"
    require(c.experts == 0 or 1 <= c.experts_top_k <= c.experts, "model.experts_top_k", c.experts_top_k, few)
    check_memory(c)


def check_memory(config: LlamaConfig) -> None:
    """Raises FieldError for memory layers that cannot be."""
    c = config
    if not c.memory_layers:
        return
    beyond = [i for i in c.memory_layers if not 0 <= i < c.depth]
    allowed = f"different blocks from 0 to {c.depth - 1}"
    different = len(set(c.memory_layers)) == len(c.memory_layers)
    require(not beyond and different, "model.memory_layers", c.memory_layers, allowed)
    require(c.memory_side >= 1, "model.memory_side", c.memory_side, "a whole number >= 1")
    require(c.memory_heads >= 1, "model.memory_heads", c.memory_heads, "a whole number >= 1")
    words = f"1 to memory_side = {c.memory_side}"
    require(1 <= c.memory_top_k <= c.memory_side, "model.memory_top_k", c.memory_top_k, words)
    even = c.memory_key_dim >= 2 and c.memory_key_dim % 2 == 0
    require(even, "model.memory_key_dim", c.memory_key_dim, "an even number >= 2")

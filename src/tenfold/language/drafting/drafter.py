"""EAGLE drafter networks: one layer that proposes a target Llama's next tokens from the target's own features.

    drafter = Eagle3Drafter(DrafterConfig(vocabulary=49152, draft_vocabulary=8192, aux_layers=(2, 15, 27), ...))
    g = drafter.fuse(features)                                  three layers' inputs, side by side -> one hidden state
    hidden, logits = drafter.step(embeds, g, positions)         row i: (embedding of t_{i+1}, g_i) -> logits of t_{i+2}
    hidden, logits = drafter.step(more_embeds, hidden, positions + 1, stores)      ... its own state instead of g

    EAGLE-3 (arXiv 2503.01840)   x = [RMS(emb); RMS(g)] -> attention of width 2H; the residual carries g, never emb;
                                 logits = head(norm(s)) over a draft vocabulary; the next g is s before the norm
    EAGLE-1 (arXiv 2401.15077)   h = fc([emb; f]), a Llama layer without its first norm; the output is the predicted f,
                                 and logits are the target's own head on it

How a tree is drafted with them is in drafting/tree_drafter.py, how they are trained in distillation/distill.py.

    B batch   N rows   H width   E width of the embeddings given   F width of the target's features   W draft vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tenfold.config import require
from tenfold.errors import UsageError
from tenfold.inference.stack import LayerParts, Stack
from tenfold.language.drafting.protocol import Features
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.llama import Llama, check_aux_layers
from tenfold.nn.attention import Attention, AttentionConfig, KeyValues
from tenfold.nn.block import Block, BlockConfig
from tenfold.nn.ffn import SwiGLUFFN
from tenfold.nn.norm import RMSNorm
from tenfold.nn.rope import RopeScaling, Rotation, TextRope


@dataclass(frozen=True)
class DrafterConfig:
    """Sizes and switches of a drafter; every variant of the released EAGLE files is one of these.

    `rope_theta` is the drafter's own: files without it mean 10,000, whatever the target has. `aux_layers` are layers of the
    target whose *inputs* are the features. `target` is the fingerprint of the target that it was trained for.
    """

    method: Literal["eagle1", "eagle3"] = "eagle3"
    vocabulary: int = 32000  # of the target
    draft_vocabulary: int = 32000  # tokens that it can propose; eagle1: the target's
    dim: int = 4096
    hidden: int = 14336
    layers: int = 1
    heads: int = 32
    kv_heads: int = 8
    head_dim: int | None = None
    target_dim: int | None = None  # width of the target; None is dim
    aux_layers: tuple[int, ...] = ()  # eagle3: target layers whose inputs are the features; empty: 2, n // 2, n - 3
    aux_count: int = 3  # how many they are
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    attention_bias: bool = False
    fc_bias: bool = False  # eagle1
    norm_before_fc: bool = False  # one RMSNorm over all features together
    fc_norm: bool = False  # one RMSNorm for each feature
    norm_output: bool = False  # feed norm(s), not s, to the next level
    norm_before_residual: bool = False  # the residual carries RMS(g), not g
    sliding_window: int | None = None  # rows that a row sees; None is all before it
    own_embedding: bool = False  # holds an embedding table instead of using the target's
    target: str = ""

    def __post_init__(self) -> None:
        for name in ("vocabulary", "draft_vocabulary", "dim", "hidden", "layers", "heads", "kv_heads"):
            require(getattr(self, name) >= 1, f"drafter.{name}", getattr(self, name), "a whole number >= 1")
        few = self.draft_vocabulary <= self.vocabulary
        require(few, "drafter.draft_vocabulary", self.draft_vocabulary, f"at most vocabulary = {self.vocabulary}")
        require(self.heads % self.kv_heads == 0, "drafter.kv_heads", self.kv_heads, f"a divisor of {self.heads}")
        require(self.rope_theta > 0, "drafter.rope_theta", self.rope_theta, "a number > 0")
        window = self.sliding_window
        require(window is None or window >= 1, "drafter.sliding_window", window, "None or a number of rows >= 1")
        both = self.norm_before_fc and self.fc_norm
        require(not both, "drafter.fc_norm", self.fc_norm, "only without norm_before_fc")
        if self.method == "eagle3":
            require(self.aux_count >= 1, "drafter.aux_count", self.aux_count, "a whole number >= 1")
            fits = len(self.aux_layers) in (0, self.aux_count) and (self.aux_layers or self.aux_count == 3)
            require(bool(fits), "drafter.aux_layers", self.aux_layers, f"{self.aux_count} layers of the target")
            alone = self.target_dim in (None, self.dim) or self.own_embedding
            words = (
                f"true, with an embedding of the drafter's own width {self.dim}: the target's is {self.target_dim} wide"
            )
            require(alone, "drafter.own_embedding", self.own_embedding, words)
        else:
            whole = self.draft_vocabulary == self.vocabulary
            require(whole, "drafter.draft_vocabulary", self.draft_vocabulary, "the vocabulary: eagle1 uses its head")
            same = self.target_dim in (None, self.dim)
            require(
                same, "drafter.target_dim", self.target_dim, "the drafter's width: eagle1 predicts the target's feature"
            )

    @property
    def width(self) -> int:
        """Width of a head."""
        return self.head_dim or self.dim // self.heads

    @property
    def features(self) -> int:
        """Width of the features that it takes from the target."""
        return (self.target_dim or self.dim) * (self.aux_count if self.method == "eagle3" else 1)

    @property
    def reduced(self) -> bool:
        """Whether it proposes fewer tokens than the target has."""
        return self.draft_vocabulary < self.vocabulary


def default_aux_layers(depth: int) -> tuple[int, int, int]:
    """EAGLE-3's three layers of a target of this depth, by their inputs: 2, n // 2, n - 3. Raises UsageError below 7
    layers, where they collide."""
    if depth < 7:
        raise UsageError(
            f"a target of {depth} layers has no three default feature layers (2, n // 2, n - 3 collide below 7). "
            f"Say which: aux_layers, each from 0 to {depth - 1}."
        )
    return 2, depth // 2, depth - 3


@runtime_checkable
class Stores(Protocol):
    """The KV cache of the rows before, by layer: plain, in pages (inference/), or `Branches` in training."""

    @property
    def layers(self) -> Sequence[KeyValues]: ...


class FirstLayer(nn.Module):
    """EAGLE-3's first layer: attention reads [RMS(emb); RMS(g)] of width 2H, the residual carries g."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        c = config
        self.before_residual = c.norm_before_residual
        self.embed_norm, self.hidden_norm = RMSNorm(c.dim, c.norm_eps), RMSNorm(c.dim, c.norm_eps)
        self.attention = Attention(_attention(c, input_dim=2 * c.dim))
        self.norm2 = RMSNorm(c.dim, c.norm_eps)
        self.ffn = SwiGLUFFN(c.dim, c.hidden, bias=False)

    def forward(
        self, embeds: Tensor, hidden: Tensor, rotation: Rotation, mask: Tensor | None, cache: KeyValues | None
    ) -> Tensor:
        normed = self.hidden_norm(hidden)
        x = normed if self.before_residual else hidden
        x = x + self.attention(torch.cat([self.embed_norm(embeds), normed], -1), rotation, mask, cache)
        return x + self.ffn(self.norm2(x))


class EagleDrafter(nn.Module):
    """What the two methods share. `ids` are the target's ids of the draft vocabulary, ascending (only where it is
    reduced)."""

    ids: Tensor

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = c = config
        self.rope = TextRope(c.width, c.rope_theta, c.rope_scaling)
        self.embedding = nn.Embedding(c.vocabulary, c.dim) if c.own_embedding else None
        if c.reduced:
            self.register_buffer("ids", torch.arange(c.draft_vocabulary))

    def bind(self, target: Llama) -> None:
        """Gives the drafter what it uses of the target without owning it. EAGLE-3 uses nothing."""

    def reads(self, target: Llama) -> tuple[Features, tuple[int, ...]]:
        """What it wants of the target, and of which layers the inputs. Raises UsageError for layers that are not there."""
        return "hidden", ()

    @torch.no_grad()
    def warm_start(self, target: Llama, head: Float[Tensor, "v h"]) -> None:
        """Begins as the target's last layers on the target's last feature: the fused state is that feature, each layer is the
        target's own (blind to the embedding at first), norm and head are the target's. Of EAGLE-1 only `fc` has such a start.

        Without it the same training reaches less (docs/LOG.md). The drafter has the target's sizes.
        """
        fc = self.get_parameter("fc.weight")
        fc.zero_()
        fc[:, -self.config.dim :] = torch.eye(self.config.dim)

    def compiled(self) -> Stack | None:
        """The network as one call of inference/stack.py, or None where it has no such form."""
        return None

    def fuse(self, features: Float[Tensor, "*b f"]) -> Float[Tensor, "*b h"]:
        """The target's features as the first hidden state. Only for what the target made, never for `step`'s output."""
        raise TypeError(f"{type(self).__name__} does not fuse features")

    def advance(
        self,
        embeds: Float[Tensor, "b n e"],
        hidden: Float[Tensor, "b n h"],
        positions: Int[Tensor, "*b n"],
        cache: Stores | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "b n h"]:
        """The state of every row, before the norm of the logits."""
        raise TypeError(f"{type(self).__name__} does not advance")

    def logits(self, state: Float[Tensor, "*b h"]) -> Float[Tensor, "*b w"]:
        """Over the draft vocabulary, from what `advance` returns."""
        raise TypeError(f"{type(self).__name__} has no logits")

    def feed(self, state: Float[Tensor, "*b h"]) -> Float[Tensor, "*b h"]:
        """What takes the place of the target's features in the next level, from what `advance` returns."""
        return state

    def step(
        self,
        embeds: Float[Tensor, "b n e"],
        hidden: Float[Tensor, "b n h"],
        positions: Int[Tensor, "*b n"],
        cache: Stores | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Float[Tensor, "b n h"], Float[Tensor, "b n w"]]:
        """(hidden states for the next level, logits of the token after the next one) of every row.

        embeds: of t_{i+1}. hidden: `fuse` of the target's feature i, or what the level before returned here.
        positions: (N,) or (B, N); row i is at i, the rows of the k-th level at i + k. cache, mask: see nn/attention.py.
        """
        state = self.advance(embeds, hidden, positions, cache, mask)
        return self.feed(state), self.logits(state)

    def target_ids(self, draft_ids: Int[Tensor, "*b"]) -> Int[Tensor, "*b"]:
        """The target's ids of draft ids."""
        return self.ids[draft_ids] if self.config.reduced else draft_ids


class Eagle3Drafter(EagleDrafter):
    """EAGLE-3: features of three layers, a head of its own. Further layers (`layers` > 1) are ordinary blocks."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__(config)
        c = config
        wide = c.target_dim or c.dim
        self.fc = nn.Linear(c.features, c.dim, bias=False)
        if c.norm_before_fc:
            self.fc_norms = nn.ModuleList([RMSNorm(c.features, c.norm_eps)])
        elif c.fc_norm:
            self.fc_norms = nn.ModuleList(RMSNorm(wide, c.norm_eps) for _ in range(c.aux_count))
        else:
            self.fc_norms = None
        self.first = FirstLayer(c)
        self.blocks = nn.ModuleList(_block(c) for _ in range(c.layers - 1))
        self.norm = RMSNorm(c.dim, c.norm_eps)
        self.head = nn.Linear(c.dim, c.draft_vocabulary, bias=False)
        _initialise(self)

    def reads(self, target: Llama) -> tuple[Features, tuple[int, ...]]:
        layers = self.config.aux_layers or default_aux_layers(target.config.depth)
        check_aux_layers(layers, target.config.depth)
        return "aux", layers

    @torch.no_grad()
    def warm_start(self, target: Llama, head: Float[Tensor, "v h"]) -> None:
        super().warm_start(target, head)
        sources = list(target.blocks)[-self.config.layers :]
        first, source, dim = self.first, sources[0], self.config.dim
        qkv = first.attention.qkv.weight
        qkv.zero_()
        qkv[:, dim:] = source.get_parameter("attention.qkv.weight")
        first.attention.out.weight.copy_(source.get_parameter("attention.out.weight"))
        first.hidden_norm.weight.copy_(source.get_parameter("norm1.weight"))
        first.norm2.weight.copy_(source.get_parameter("norm2.weight"))
        first.ffn.load_state_dict(source.get_submodule("ffn").state_dict())
        for block, source in zip(self.blocks, sources[1:], strict=True):
            block.load_state_dict(source.state_dict())
        self.norm.weight.copy_(target.norm.weight)
        self.head.weight.copy_(head[self.ids] if self.config.reduced else head)

    def compiled(self) -> Stack | None:
        first = self.first
        if self.fc_norms is not None or first.before_residual:
            return None
        attention, ffn = first.attention, first.ffn
        maps = LayerParts(
            first.hidden_norm, attention.qkv, attention.out, first.norm2, ffn.gate_up, ffn.down, first.embed_norm
        )
        layers = [maps, *(LayerParts.of(block) for block in self.blocks)]
        return Stack.of(layers, attention.config, self.norm, self.head)

    def fuse(self, features: Float[Tensor, "*b f"]) -> Float[Tensor, "*b h"]:
        if self.fc_norms is not None:
            parts = features.chunk(len(self.fc_norms), dim=-1)
            features = torch.cat([norm(part) for norm, part in zip(self.fc_norms, parts, strict=True)], dim=-1)
        return self.fc(features)

    def advance(
        self,
        embeds: Float[Tensor, "b n e"],
        hidden: Float[Tensor, "b n h"],
        positions: Int[Tensor, "*b n"],
        cache: Stores | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "b n h"]:
        rotation = self.rope(positions)
        stores = [None] * self.config.layers if cache is None else cache.layers
        x = self.first(embeds, hidden, rotation, mask, stores[0])
        for block, store in zip(self.blocks, stores[1:], strict=True):
            x = block(x, rotation, mask, store)
        return x

    def logits(self, state: Float[Tensor, "*b h"]) -> Float[Tensor, "*b w"]:
        return self.head(self.norm(state))

    def feed(self, state: Float[Tensor, "*b h"]) -> Float[Tensor, "*b h"]:
        return self.norm(state) if self.config.norm_output else state


class Eagle1Drafter(EagleDrafter):
    """EAGLE-1: predicts the target's last feature. `bind` gives it the target's head, which is not part of its weights."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__(config)
        c = config
        self.fc = nn.Linear(2 * c.dim, c.dim, bias=c.fc_bias)
        self.blocks = nn.ModuleList(_block(c) for _ in range(c.layers))
        self.blocks[0].norm1 = nn.Identity()
        self._target: tuple[Llama, ...] = ()  # in a tuple, so that it does not become a part of this module
        _initialise(self)

    def bind(self, target: Llama) -> None:
        self._target = (target,)

    def fuse(self, features: Float[Tensor, "*b f"]) -> Float[Tensor, "*b h"]:
        return features

    def advance(
        self,
        embeds: Float[Tensor, "b n e"],
        hidden: Float[Tensor, "b n h"],
        positions: Int[Tensor, "*b n"],
        cache: Stores | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "b n h"]:
        rotation = self.rope(positions)
        x = self.fc(torch.cat([embeds, hidden], dim=-1))
        for block, store in zip(self.blocks, [None] * len(self.blocks) if cache is None else cache.layers, strict=True):
            x = block(x, rotation, mask, store)
        return x

    def logits(self, state: Float[Tensor, "*b h"]) -> Float[Tensor, "*b w"]:
        assert self._target, "bind(target) gives this drafter its head"
        return self._target[0].logits(state)


def make_drafter(config: DrafterConfig) -> EagleDrafter:
    """The network of a configuration, with fresh weights."""
    return (Eagle3Drafter if config.method == "eagle3" else Eagle1Drafter)(config)


def config_for(target: LlamaConfig, /, **changes: object) -> DrafterConfig:
    """A drafter of one layer of the target's own size: what `changes` do not say."""
    method = changes.get("method", "eagle3")
    values: dict[str, object] = {
        "vocabulary": target.vocabulary,
        "draft_vocabulary": target.vocabulary,
        "dim": target.dim,
        "hidden": target.hidden,
        "heads": target.heads,
        "kv_heads": target.kv_heads,
        "head_dim": target.width,
        "norm_eps": target.norm_eps,
        "rope_theta": target.rope_theta,
        "rope_scaling": target.rope_scaling,
    }
    if method == "eagle3":
        aux = changes.get("aux_layers") or default_aux_layers(target.depth)
        assert isinstance(aux, tuple)
        changes = changes | {"aux_layers": aux, "aux_count": len(aux)}
    return DrafterConfig(**(values | changes))  # pyright: ignore[reportArgumentType] (checked by the class itself)


def _attention(c: DrafterConfig, input_dim: int | None = None) -> AttentionConfig:
    bias = c.attention_bias
    return AttentionConfig(
        c.dim, c.heads, c.kv_heads, c.width, qkv_bias=bias, out_bias=bias, causal=True, input_dim=input_dim
    )


def _block(c: DrafterConfig) -> Block:
    return Block(BlockConfig(_attention(c), norm="rms", norm_eps=c.norm_eps), SwiGLUFFN(c.dim, c.hidden, bias=False))


def _initialise(drafter: nn.Module) -> None:
    for module in drafter.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


def membership(ids: Int[Tensor, " w"], vocabulary: int) -> Bool[Tensor, " v"]:
    """True at every id of the draft vocabulary (the `t2d` of released files)."""
    inside = torch.zeros(vocabulary, dtype=torch.bool, device=ids.device)
    inside[ids] = True
    return inside

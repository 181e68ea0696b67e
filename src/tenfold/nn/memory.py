"""Product-key memory layers: a feed-forward network replaced by a lookup in one large shared table.

    table = MemoryTable(side=256, width=512)                               65,536 slots, an object you own and pass
    layers = [MemoryLayer(512, table, heads=4, top_k=32) for _ in range(3)]        three layers, one storage
    y = layers[0](x)                                                       (..., 512) -> (..., 512)

    q = W_q x, cut in two halves per head; s_i = q_i . K_i over n sub-keys each; the k largest sums s_1[a] + s_2[b] name
    the slots a n + b; softmax over the k of each head, in fp32; y = sum over heads and hits of weight times value

Variants: `pkm` is y (Large Memory Layers with Product Keys, arXiv 1907.05242); `plus` is W_o (y * silu(W_g x)) (Memory
Layers at Scale, arXiv 2412.09764); `peer` is sum_j gelu(x . U_j) w_j V_j (arXiv 2407.04153), with an ExpertTable.

A layer refers to its table without owning it: the table's parameters belong to whatever module holds the table (a model
holds it once, as `memory`), so they stand once in a file and are moved once by the optimizer.

    T tokens   d model width   n sub-keys of a half   K = n^2 slots   D value width   H heads   k hits of a head
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tenfold.errors import UsageError
from tenfold.kernels.bag import bag, row_dots
from tenfold.kernels.native import large_pages

FILLED = 4096  # rows drawn at a time
_COLUMNS: ContextVar[tuple[int, int]] = ContextVar("columns", default=(0, 1))

Variant = Literal["pkm", "plus", "peer"]
QueryKeyNorm = Literal["query", "both", "none"]


class Exchange(Protocol):
    """How a table that is split over `ranks` ranks is read, and where its parts stand (engine/memory_parallel.py)."""

    ranks: int
    replicas: Any  # the process group of the ranks that hold the same columns

    def read(self, values: Tensor, index: Tensor, weight: Tensor, frozen: Tensor | None) -> Tensor: ...
    def placed(self, tensor: Tensor) -> Tensor: ...


class RowTable(nn.Module):
    """What the two kinds of table share: slots, and rows that may be frozen or written.

    `row_gradients` names the parameters whose gradient is sparse (engine/row_gradients.py); they get RowAdamW. Inside
    `columns_of(part, parts)` only that part of every row is made, of the very numbers that a whole table would have.
    """

    row_gradients: tuple[str, ...] = ()

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        if side < 1 or width < 1:
            raise UsageError(f"a memory of side {side} and width {width}: both are whole numbers >= 1.")
        self.side, self.width = side, width
        part, parts = _COLUMNS.get()
        if width % parts:
            raise UsageError(f"a memory of width {width} over {parts} ranks: allowed are {_divisors(width)}.")
        for name in self.row_gradients:
            values = large_pages(torch.empty(side * side, width // parts))
            if not values.is_meta:
                _fill(values, width, part)
            setattr(self, name, nn.Parameter(values))
        self.frozen: Tensor | None
        self.register_buffer("frozen", None, persistent=False)
        self.exchange: Exchange | None = None

    @property
    def slots(self) -> int:
        return self.side**2

    def freeze(self, ids: Int[Tensor, "u"] | None = None) -> None:
        """Rows `ids` no longer learn: they leave the gradient, so that RowAdamW keeps them bit for bit. Without ids
        every row does. It is not part of the state: call it again after loading."""
        device = getattr(self, self.row_gradients[0]).device
        marks = torch.zeros(self.slots, dtype=torch.bool, device=device) if self.frozen is None else self.frozen.clone()
        marks[slice(None) if ids is None else ids] = True
        self.frozen = marks

    @property
    def split(self) -> int:
        """Over how many ranks the table is split; 1 for a whole one."""
        return self.exchange.ranks if self.exchange is not None else 1

    @property
    def replicas(self) -> Any:
        """The process group of the ranks that hold the same columns; None is every rank."""
        return self.exchange.replicas if self.exchange is not None else None

    def placed(self, tensor: Tensor) -> Tensor:
        """A tensor like one of the table's, or like its optimizer state, as a checkpoint takes it."""
        return tensor if self.exchange is None else self.exchange.placed(tensor)

    def extra_repr(self) -> str:
        return f"side={self.side}, width={self.width}, slots={self.slots:,}"


@contextmanager
def columns_of(part: int, parts: int) -> Iterator[None]:
    """Tables made inside hold the columns of one of `parts` ranks alone, so that no rank ever holds a whole one."""
    token = _COLUMNS.set((part, parts))
    try:
        yield
    finally:
        _COLUMNS.reset(token)


def _fill(values: Tensor, width: int, part: int) -> None:
    """Normal numbers of standard deviation width^-1/2, some rows at a time: a rank draws all columns and keeps its own."""
    own = values.shape[1]
    for rows in values.split(FILLED):
        drawn = torch.empty(len(rows), width, dtype=values.dtype, device=values.device).normal_(std=width**-0.5)
        rows.copy_(drawn[:, part * own : (part + 1) * own])


def _divisors(width: int) -> str:
    return ", ".join(str(n) for n in range(1, width + 1) if width % n == 0)


class MemoryTable(RowTable):
    """`values` (K, D), drawn from a normal distribution of standard deviation D^-1/2."""

    row_gradients = ("values",)
    values: nn.Parameter

    def read(self, index: Int[Tensor, "t b"], weight: Float[Tensor, "t b"]) -> Float[Tensor, "t d"]:
        """Weighted sums of rows."""
        if self.exchange is not None:
            return self.exchange.read(self.values, index, weight, self.frozen)
        return bag(self.values, index, weight, self.frozen)

    @torch.no_grad()
    def write(self, ids: Int[Tensor, "u"], rows: Float[Tensor, "u d"]) -> None:
        """Puts `rows` in the slots `ids`, frozen or not."""
        if self.exchange is not None:
            raise UsageError("a table that is split over ranks cannot be written; write it before it is split.")
        self.values[ids] = rows.to(self.values.dtype)


class ExpertTable(RowTable):
    """Experts of one hidden unit: `down` (K, D) reads the token, `up` (K, D) is added to the result."""

    row_gradients = ("down", "up")
    down: nn.Parameter
    up: nn.Parameter

    def read(
        self, index: Int[Tensor, "t b"], weight: Float[Tensor, "t b"], x: Float[Tensor, "t d"]
    ) -> Float[Tensor, "t d"]:
        """sum_j gelu(x . down_j) weight_j up_j."""
        hidden = F.gelu(row_dots(self.down, index, x, self.frozen))
        return bag(self.up, index, hidden * weight.to(hidden.dtype), self.frozen)


class ProductKeys(nn.Module):
    """The lookup: which k of n^2 slots a token reads in each head, and with what weights.

    qk_norm: `query` normalises each half query (LayerNorm without gain); `both` is a cosine times a learned scale of
    each head, which starts at sqrt(key_dim / 12) so that scores spread as without; `none` is the released code's.
    """

    def __init__(
        self,
        dim: int,
        side: int,
        heads: int = 4,
        top_k: int = 32,
        key_dim: int = 512,
        qk_norm: QueryKeyNorm = "query",
    ) -> None:
        super().__init__()
        if key_dim < 2 or key_dim % 2:
            raise UsageError(
                f"key_dim = {key_dim}: allowed is an even number >= 2; half a query meets each set of keys."
            )
        if not 1 <= top_k <= side:
            raise UsageError(f"top_k = {top_k} of {side} sub-keys: allowed is 1 to {side}. Raise side or lower top_k.")
        if heads < 1:
            raise UsageError(f"heads = {heads}: allowed is a whole number >= 1.")
        self.dim, self.side, self.heads = dim, side, heads
        self.top_k, self.key_dim, self.qk_norm = top_k, key_dim, qk_norm
        self.query = nn.Linear(dim, heads * key_dim)
        self.keys = nn.Parameter(torch.empty(heads, 2, side, key_dim // 2))
        self.scale = nn.Parameter(torch.empty(heads)) if qk_norm == "both" else None
        ProductKeys.reset_parameters(self)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Xavier-uniform queries, sub-keys uniform in +-key_dim^-1/2."""
        nn.init.xavier_uniform_(self.query.weight)
        nn.init.zeros_(self.query.bias)
        nn.init.uniform_(self.keys, -(self.key_dim**-0.5), self.key_dim**-0.5)
        if self.scale is not None:
            nn.init.constant_(self.scale, (self.key_dim / 12) ** 0.5)

    def lookup(self, x: Float[Tensor, "t d"]) -> tuple[Int[Tensor, "t h k"], Float[Tensor, "t h k"]]:
        """Slots and their weights, the largest first. Weights are fp32 (fp64 for such tokens) and sum to 1 in each head."""
        first, second = winning_pairs(self.top_k, x.device)
        best, places = self.scores(x).topk(self.top_k)  # (T, H, 2, k), sorted
        sums = best[:, :, 0, first] + best[:, :, 1, second]  # (T, H, pairs)
        top, chosen = sums.topk(self.top_k)
        a = places[:, :, 0].gather(-1, first[chosen])
        b = places[:, :, 1].gather(-1, second[chosen])
        exact = torch.promote_types(top.dtype, torch.float32)
        return a * self.side + b, top.softmax(-1, dtype=exact)

    def scores(self, x: Float[Tensor, "t d"]) -> Float[Tensor, "t h 2 n"]:
        """Of every sub-key, for each half query."""
        q = self.query(x).unflatten(-1, (self.heads, 2, self.key_dim // 2))
        keys = self.keys
        if self.qk_norm == "query":
            q = F.layer_norm(q, q.shape[-1:])
        elif self.scale is not None:
            q = F.normalize(q, dim=-1) * self.scale[:, None, None]
            keys = F.normalize(keys, dim=-1)
        return torch.einsum("thpc,hpnc->thpn", q, keys)


class MemoryLayer(ProductKeys):
    """x (..., d) -> (..., d). `gate` multiplies the result by a learned sigmoid of each token.

    Raises UsageError for a table that does not go with the variant, or whose width is not the model's where nothing
    projects it back (`pkm`, `peer`).
    """

    table: MemoryTable | ExpertTable

    def __init__(
        self,
        dim: int,
        table: MemoryTable | ExpertTable,
        *,
        heads: int = 4,
        top_k: int = 32,
        key_dim: int = 512,
        variant: Variant = "plus",
        qk_norm: QueryKeyNorm = "query",
        gate: bool = False,
    ) -> None:
        super().__init__(dim, table.side, heads, top_k, key_dim, qk_norm)
        if (variant == "peer") != isinstance(table, ExpertTable):
            kind = "ExpertTable" if variant == "peer" else "MemoryTable"
            raise UsageError(f"variant {variant!r} reads a {kind}, and this is a {type(table).__name__}.")
        if variant != "plus" and table.width != dim:
            raise UsageError(
                f"variant {variant!r} adds rows as they are: a table of width {dim} is needed, not {table.width}."
            )
        self.variant = variant
        self.__dict__["table"] = table  # not as a sub-module: see the file's docstring
        self.gate_in = nn.Linear(dim, table.width) if variant == "plus" else None
        self.out = nn.Linear(table.width, dim) if variant == "plus" else None
        self.gate = nn.Linear(dim, 1) if gate else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Besides the lookup: projections of standard deviation d^-1/2."""
        super().reset_parameters()
        for linear in (self.gate_in, self.out):
            if linear is not None:
                nn.init.normal_(linear.weight, std=self.dim**-0.5)
                nn.init.zeros_(linear.bias)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        tokens = x.reshape(-1, self.dim)
        index, weight = (part.flatten(1) for part in self.lookup(tokens))
        table = self.table
        y = table.read(index, weight, tokens) if isinstance(table, ExpertTable) else table.read(index, weight)
        if self.gate_in is not None and self.out is not None:
            y = self.out(y * F.silu(self.gate_in(tokens)))
        if self.gate is not None:
            y = y * self.gate(tokens).sigmoid()
        return y.to(x.dtype).view(x.shape)

    @property
    def macs_per_token(self) -> int:
        """Multiplications of one token: query, sub-key scores, values, and the projections of the variant."""
        hits, width = self.heads * self.top_k, self.table.width
        macs = self.dim * self.heads * self.key_dim + self.heads * self.side * self.key_dim + hits * width
        if self.variant == "plus":
            macs += 2 * self.dim * width
        if self.variant == "peer":
            macs += hits * self.dim
        return macs + (self.dim if self.gate is not None else 0)

    def extra_repr(self) -> str:
        return f"{self.variant}, side={self.side}, heads={self.heads}, top_k={self.top_k}, key_dim={self.key_dim}"


@cache
def winning_pairs(k: int, device: torch.device | None = None) -> tuple[Int[Tensor, "p"], Int[Tensor, "p"]]:
    """Places (i, j) in two sorted halves whose sum can be among the k largest: those with (i + 1)(j + 1) <= k, since
    every pair no further down in both halves is at least as large. 119 of 1,024 for k = 32."""
    pairs = [(i, j) for i in range(k) for j in range(k // (i + 1))]
    first, second = zip(*pairs)
    return torch.tensor(first, device=device), torch.tensor(second, device=device)


def centred_layers(depth: int, count: int) -> tuple[int, ...]:
    """`count` layers evenly spaced and centred in `depth`, 0-based: 3 of 24 are 4, 12, 20 (the paper's)."""
    if not 1 <= count <= depth:
        raise UsageError(f"{count} memory layers in a depth of {depth}: allowed is 1 to {depth}.")
    return tuple(int((i + 0.5) * depth / count) for i in range(count))


def insert_memory(
    model: nn.Module, layers: tuple[int, ...], side: int, variant: Variant = "plus", **options: Any
) -> list[MemoryLayer]:
    """Replaces the feed-forward networks of `model.blocks[i]`, i in `layers`, by memory layers that share one new table,
    `model.memory`. `options` go to MemoryLayer. Raises UsageError for a layer beyond the depth, before anything changes."""
    blocks: Any = model.blocks
    wrong = [i for i in layers if not 0 <= i < len(blocks)]
    if wrong or not layers:
        raise UsageError(
            f"memory layers {list(layers)} in a depth of {len(blocks)}: allowed are 0 to {len(blocks) - 1}."
        )
    dim = blocks[0].config.attention.dim
    table = (ExpertTable if variant == "peer" else MemoryTable)(side, dim)
    made = [MemoryLayer(dim, table, variant=variant, **options) for _ in layers]
    for i, layer in zip(layers, made):
        blocks[i].ffn = layer
    model.memory = table
    return made

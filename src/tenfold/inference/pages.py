"""Paged KV cache and block tables: many requests share one pool of pages, and come and go without moving others.

    pages = PageAllocator(count=512, size=16)
    cache = PagedCache(layers=30, heads=3, head_dim=64, pages=512, page_size=16)
    table = pages.open(expected=200);  pages.cover(table, rows=40)
    step = cache.step([table], starts=[0], counts=[40])             one pass of the model over 40 new rows
    y = step.layers[0].attend(q, k, v, mask)                        what a block calls (nn/attention.py, KeyValues)
    cache.keep([table], start=[39], rows=[[0, 2, 5]])               an accepted path moves forward; nothing is rotated again

Paged attention: arXiv 2309.06180. On a CPU a gather of the whole prefix would cost as much as attending to it, so the
allocator gives a request one run of pages where it can, and the prefix is then a view of the pool.

    B requests   N new rows of each   M new rows together   H heads   G key/value heads   D head width   T rows so far
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tenfold.nn.attention import causal_mask, tail_mask

FREE, HELD, USED = (
    0,
    1,
    2,
)  # held: kept free beside a request so that it can grow in one run, until nothing else is left


@dataclass
class PageTable:
    """The pages of one request, in the order of its rows. `run` is the stretch of pages that was held for it."""

    size: int
    run: range = range(0)
    pages: list[int] = field(default_factory=list)

    @property
    def capacity(self) -> int:
        return len(self.pages) * self.size

    def slots(self, start: int, end: int) -> Int[Tensor, " n"]:
        """Rows start..end-1 as places in the pool."""
        rows = torch.arange(start, end)
        if self.first is not None:
            return rows + self.first
        return torch.tensor(self.pages, dtype=torch.int64)[rows // self.size] * self.size + rows % self.size

    @property
    def first(self) -> int | None:
        """The place of row 0 when all rows stand in one run."""
        p = self.pages
        return p[0] * self.size if p and p[-1] - p[0] == len(p) - 1 and p == list(range(p[0], p[-1] + 1)) else None


class PageAllocator:
    """Hands out pages. `free` is what can still be handed out; nothing is lost as long as every table is closed."""

    def __init__(self, count: int, size: int = 16) -> None:
        self.count, self.size = count, size
        self._state = bytearray(count)

    @property
    def free(self) -> int:
        return self.count - self._state.count(USED)

    def open(self, expected: int) -> PageTable:
        """An empty table, with a run of pages held for `expected` rows if there is one."""
        wanted = min(self.count, -(-max(1, expected) // self.size))
        at = self._state.find(bytes(wanted))
        if at < 0:
            return PageTable(self.size)
        self._state[at : at + wanted] = bytes([HELD]) * wanted
        return PageTable(self.size, range(at, at + wanted))

    def cover(self, table: PageTable, rows: int) -> bool:
        """Adds pages until the table has room for `rows`; False, and nothing taken, when there are too few."""
        missing = -(-rows // self.size) - len(table.pages)
        if missing > self.free:
            return False
        for _ in range(missing):
            page = self._next(table)
            self._state[page] = USED
            table.pages.append(page)
        return True

    def _next(self, table: PageTable) -> int:
        following = table.pages[-1] + 1 if table.pages else table.run.start
        if following in table.run and self._state[following] == HELD:
            return following
        if table.pages and following < self.count and self._state[following] == FREE:
            return following
        free = self._state.find(FREE)
        return free if free >= 0 else self._state.rfind(HELD)

    def trim(self, table: PageTable, rows: int) -> None:
        """Gives back the pages behind `rows` rows."""
        keep = -(-rows // self.size)
        for page in table.pages[keep:]:
            self._state[page] = HELD if page in table.run else FREE
        del table.pages[keep:]

    def close(self, table: PageTable) -> None:
        """Gives everything back."""
        self.trim(table, 0)
        for page in table.run:
            if self._state[page] == HELD:
                self._state[page] = FREE
        table.run = range(0)


class PagedCache:
    """keys and values are (layers, G, slots, D); a slot is a row of a page."""

    def __init__(
        self,
        layers: int,
        heads: int,
        head_dim: int,
        pages: int,
        page_size: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        self.keys = torch.zeros(layers, heads, pages * page_size, head_dim, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)

    def step(
        self,
        tables: Sequence[PageTable],
        starts: Sequence[int],
        counts: Sequence[int],
        lows: Sequence[int] | None = None,
        window: int | None = None,
    ) -> PagedStep:
        """A view for one pass over counts[b] new rows of every request, behind its starts[b] first ones. The tables must
        cover them. The model gets them as (B, N) when all counts are the same, or one after the other as (1, M).

        For a sliding window, lows: rows before lows[b] are not read; window (without a tree mask): a row sees itself and
        window - 1 rows before it.
        """
        return PagedStep(self, tables, starts, counts, lows, window)

    def keep(self, tables: Sequence[PageTable], starts: Sequence[int], rows: Sequence[Sequence[int]]) -> None:
        """Of the rows behind starts[b], moves rows[b] (counted from there) forward, in this order."""
        source, target = [], []
        for table, start, kept in zip(tables, starts, rows, strict=True):
            moved = [(start + row, start + i) for i, row in enumerate(kept) if row != i]
            if moved:
                slots = table.slots(0, max(a for a, _ in moved) + 1)
                source.append(slots[[a for a, _ in moved]])
                target.append(slots[[b for _, b in moved]])
        if source:
            self.copy(torch.cat(source), torch.cat(target))

    def copy(self, source: Int[Tensor, " n"], target: Int[Tensor, " n"]) -> None:
        """Rows at the slots `source` to the slots `target`; all are read before one is written."""
        for pool in (self.keys, self.values):
            pool[:, :, target] = pool[:, :, source]

    def load(self, slots: Int[Tensor, " n"]) -> tuple[Float[Tensor, "l g n d"], Float[Tensor, "l g n d"]]:
        """Copies of the keys and values at these slots."""
        return self.keys[:, :, slots], self.values[:, :, slots]

    def store(self, slots: Int[Tensor, " n"], keys: Float[Tensor, "l g n d"], values: Float[Tensor, "l g n d"]) -> None:
        self.keys[:, :, slots] = keys.to(self.keys.device)
        self.values[:, :, slots] = values.to(self.values.device)


class PagedStep:
    """The cache as a model sees it in one pass: `layers[i].attend`. `length` is the longest start."""

    def __init__(
        self,
        cache: PagedCache,
        tables: Sequence[PageTable],
        starts: Sequence[int],
        counts: Sequence[int],
        lows: Sequence[int] | None = None,
        window: int | None = None,
    ) -> None:
        assert all(s + n <= t.capacity for t, s, n in zip(tables, starts, counts, strict=True)), "pages are missing"
        device = cache.keys.device
        self.cache, self.length = cache, max(starts)
        self.counts = list(counts)
        self.ends = [s + n for s, n in zip(starts, counts)]
        self.lows, self.window = list(lows or [0] * len(self.counts)), window
        firsts = [table.first for table in tables]
        self.places = [
            slice(first + low, first + end) if first is not None else table.slots(low, end).to(device)
            for table, first, low, end in zip(tables, firsts, self.lows, self.ends)
        ]
        if len(tables) == 1 and firsts[0] is not None:
            self.new: slice | Tensor = slice(firsts[0] + starts[0], firsts[0] + self.ends[0])
        else:
            slots = [table.slots(s, e) for table, s, e in zip(tables, starts, self.ends)]
            self.new = torch.cat(slots).to(device)
        self._layers: list[PagedLayer] = []
        self._masks: tuple[Tensor | None, list[Tensor | None]] | None = None

    @property
    def layers(self) -> list[PagedLayer]:
        """One for each layer; made at the first use, because a compiled pass needs none."""
        if not self._layers:
            pools = zip(self.cache.keys.unbind(), self.cache.values.unbind())
            self._layers = [PagedLayer(self, keys, values) for keys, values in pools]
        return self._layers

    @property
    def slots(self) -> list[Int[Tensor, " t"]]:
        """Where the rows that each request sees stand in the pool, the new ones last."""
        return [torch.arange(p.start, p.stop) if isinstance(p, slice) else p for p in self.places]

    def masks(self, mask: Tensor | None, repeat: int, dtype: torch.dtype) -> list[Tensor | None]:
        """For every request what is added to its scores: (repeat N, T), or None; made once, used by all layers."""
        if self._masks is None or self._masks[0] is not mask:
            made = [self._mask(mask, b, repeat, dtype) for b in range(len(self.counts))]
            self._masks = (mask, made)
        return self._masks[1]

    def _mask(self, mask: Tensor | None, b: int, repeat: int, dtype: torch.dtype) -> Tensor | None:
        rows, keys = self.counts[b], self.ends[b] - self.lows[b]
        if mask is None and rows == 1:
            return None
        if mask is None:
            seen = causal_mask(rows, keys, self.cache.keys.device)
            if self.window is not None:
                seen = seen.triu(keys - rows - self.window + 1)
        else:
            seen = tail_mask(mask if mask.ndim == 2 else mask[b].flatten(0, -3)[0], keys)
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf).tile(repeat, 1)


class PagedLayer:
    """One layer of a `PagedStep`."""

    def __init__(self, step: PagedStep, keys: Float[Tensor, "g slots d"], values: Float[Tensor, "g slots d"]) -> None:
        self.step, self.keys, self.values = step, keys, values

    def attend(
        self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n d"], mask: Tensor | None
    ) -> Float[Tensor, "b h n d"]:
        """See nn/attention.py, `KeyValues`. (B, N) rows, or (1, M) with the requests one after the other."""
        step, (groups, width) = self.step, (k.shape[1], k.shape[3])
        self.keys[:, step.new] = k.transpose(0, 1).reshape(groups, -1, width)
        self.values[:, step.new] = v.transpose(0, 1).reshape(groups, -1, width)
        # The heads of a group become more queries of one head: every kernel takes that, without repeated keys.
        repeat = q.shape[1] // groups
        grouped = q.transpose(0, 1).reshape(groups, repeat, -1, width)
        parts, at = [], 0
        for b, (extra, place) in enumerate(zip(step.masks(mask, repeat, q.dtype), step.places)):
            rows = step.counts[b]
            mine = grouped[:, :, at : at + rows].reshape(1, groups, repeat * rows, width)
            out = F.scaled_dot_product_attention(mine, self.keys[None, :, place], self.values[None, :, place], extra)
            parts.append(out.view(groups, repeat, rows, width))
            at += rows
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        return y.reshape(q.shape[1], q.shape[0], -1, width).transpose(0, 1)

"""Prefix cache: pages of the KV cache of prompts that were computed before, here or in another process, at the price of a copy.

Pages are keyed by the hash chain of all tokens up to their end, and copied into a request's own run of pages: on a CPU a copy
once is cheaper than gathering scattered pages at every step. A page also keeps the target's feature of its last row, because
the drafter's row there pairs it with the *next* token, which another prompt may continue differently.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tenfold.language.decoding.request import Page, Request
from tenfold.language.decoding.runner import Runner


class PrefixCache:
    """At most `capacity` tokens; the least recently used pages go first. 0 turns it off."""

    def __init__(self, runner: Runner, capacity: int) -> None:
        self._runner, self._size = runner, runner.pages.size
        self._most = capacity // self._size
        self._pages: OrderedDict[bytes, Page] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pages)

    @torch.inference_mode()
    def reuse(self, request: Request) -> int:
        """Fills the pages of a fresh request as far as they are cached; returns the rows that need not be computed."""
        found = []
        for key in page_ids(request.tokens[:-1], self._size):
            page = self._pages.get(key) or request.known_pages.get(key)
            if page is None:
                break
            if key in self._pages:
                self._pages.move_to_end(key)
            found.append(page)
        request.known_pages = {}  # once: after a preemption the memory would have been held for nothing
        rows = sum(page.target[0].shape[2] for page in found)
        assert request.table is not None
        if not found or not self._runner.pages.cover(request.table, rows):
            return 0
        slots = request.table.slots(0, rows)
        keys, values = ([page.target[i] for page in found] for i in range(2))
        self._runner.cache.store(slots, torch.cat(keys, 2), torch.cat(values, 2))
        request.rows = rows
        if request.draft is not None:
            self._reuse_drafter(request, found, slots)
        return rows

    def _reuse_drafter(self, request: Request, found: list[Page], slots: Tensor) -> None:
        drafter, state, rows = self._runner.drafter, request.draft, request.rows
        assert drafter is not None
        assert state is not None
        pool = self._runner.draft_cache
        if pool is not None:
            parts = [page.drafter for page in found if page.drafter is not None]
            pool.store(slots, torch.cat([k for k, _ in parts], 2), torch.cat([v for _, v in parts], 2))
        last = found[-1].feature
        state.rows = rows - 1  # the last row again, with the token that follows here
        drafter.extend([state], [1], torch.tensor([request.tokens[rows]]), None if last is None else last[None])
        request.page_features = {i: page.feature for i, page in enumerate(found) if page.feature is not None}
        request.last_feature = last

    @torch.inference_mode()
    def add(self, request: Request) -> None:
        """Remembers the whole pages of a request's prompt, when their rows are there."""
        pages = min(request.rows, request.prompt_length - 1) // self._size if self._most else 0
        assert request.table is not None
        needs_feature = request.draft is not None and self._runner.drafter is not None
        needs_feature = needs_feature and self._runner.drafter.features != "none"  # type: ignore[union-attr]
        for i, key in enumerate(page_ids(request.tokens[: pages * self._size], self._size)):
            if key in self._pages:
                self._pages.move_to_end(key)
                continue
            feature = request.page_features.get(i)
            if needs_feature and feature is None:
                break
            slots = request.table.slots(i * self._size, (i + 1) * self._size)
            pool = self._runner.draft_cache
            self._pages[key] = Page(self._runner.cache.load(slots), pool.load(slots) if pool else None, feature)
        while len(self._pages) > self._most:
            self._pages.popitem(last=False)

    @torch.inference_mode()
    def export(self, request: Request) -> dict[bytes, Page]:
        """All rows of a prompt that has been computed, the last page as full as it is."""
        assert request.table is not None
        pool, pages = self._runner.draft_cache, {}
        for i, key in enumerate(page_ids(request.tokens[:-1], self._size)):
            start, end = i * self._size, min((i + 1) * self._size, request.rows)
            slots = request.table.slots(start, end)
            feature = request.page_features.get(i) if end - start == self._size else request.last_feature
            pages[key] = Page(self._runner.cache.load(slots), pool.load(slots) if pool else None, feature)
        return pages


def page_ids(tokens: Sequence[int], size: int) -> list[bytes]:
    """The name of every page of a text: a hash of all tokens up to its end. The last page may be short."""
    ids, key = [], b""
    for at in range(0, len(tokens), size):
        text = np.array(tokens[at : at + size], np.int64).tobytes()
        key = hashlib.blake2b(key + text, digest_size=20).digest()
        ids.append(key)
    return ids

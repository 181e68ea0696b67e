"""Scheduler of continuous batching: which requests get pages, which prompts are prefilled, and which requests are preempted.

Requests wait in order of arrival; one is admitted when there are pages for its prompt. Prompts are computed in chunks between
the steps of the others, so that a long one does not stop them. When pages run out, the youngest request is preempted: it gives
up its pages and waits again, and its text is computed again later, with the same result, because every random number is keyed
by its place in the text.
"""

from __future__ import annotations

from collections import deque

from tenfold.language.decoding.prefix_cache import PrefixCache
from tenfold.language.decoding.request import Request
from tenfold.language.decoding.runner import Runner


class Scheduler:
    """`max_batch` requests at most are decoded together; a prompt's pass takes at most `chunk` rows."""

    def __init__(self, runner: Runner, prefixes: PrefixCache, max_batch: int, chunk: int) -> None:
        self.runner, self.prefixes, self.max_batch, self.chunk = runner, prefixes, max_batch, chunk
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.preemptions = 0

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def remove(self, name: str) -> Request | None:
        """Takes a request out, wherever it is, and frees its pages."""
        for queue in (self.running, self.waiting):
            for request in queue:
                if request.id == name:
                    queue.remove(request)
                    self.runner.stop(request)
                    return request
        return None

    def admit(self) -> None:
        """Moves waiting requests in while there is room; what is known of their prompts is copied."""
        while self.waiting and len(self.running) < self.max_batch:
            request = self.waiting[0]
            # One page more than the text, so that a request is not admitted only to be preempted at once.
            if self.runner.pages.free * self.runner.pages.size < len(request.tokens) + self.runner.pages.size:
                return
            self.waiting.popleft()
            self.running.append(request)
            with request.own_part():
                self.runner.start(request)
                request.stats.cached_tokens = self.prefixes.reuse(request)
                if request.ready:
                    self.prefixes.add(request)

    def prompts(self) -> list[tuple[Request, int]]:
        """The next rows to compute of requests whose text is not in the pages yet, within one chunk."""
        parts, room = [], self.chunk
        for request in [r for r in self.running if r.error is None]:
            count = min(len(request.tokens) - 1 - request.rows, room)
            if count > 0 and request in self.running and self._cover(request, request.rows + count):
                parts.append((request, count))
                room -= count
        return [(request, count) for request, count in parts if request in self.running]

    def decodable(self, nodes: int) -> list[Request]:
        """The requests that can be decoded with a tree of this size; others are preempted until these fit."""
        for request in [r for r in self.running if r.ready and r.error is None]:
            if request in self.running:
                self._cover(request, request.rows + nodes + 1)
        able = [r for r in self.running if r.ready and r.error is None]
        return [r for r in able if r.table and r.table.capacity > r.rows + nodes]

    def _cover(self, request: Request, rows: int) -> bool:
        """Pages for `rows`, taken from the youngest requests if need be; False when the request itself had to go."""
        while True:
            assert request.table is not None
            if self.runner.pages.cover(request.table, rows):
                return True
            youngest = self.running.pop()
            self.runner.stop(youngest)
            self.waiting.appendleft(youngest)
            self.preemptions += 1
            if youngest is request:
                return False

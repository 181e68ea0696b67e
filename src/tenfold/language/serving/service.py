"""Asynchronous service around the engine: it runs in a thread of its own, coroutines hand in requests and read deltas.

    service = Service(llm.engine)
    async with service.running():
        async for delta in service.answer(ids, params): ...          leaving early aborts it and frees its pages

Only this thread touches the engine. What fails for one request ends that one (decoding/isolation.py): with UsageError before
its first token, later with the finish reason "error" where the request is the cause. Only when a whole step fails does every
answer in progress end with the error; the next request finds the engine empty and working.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass

from tenfold.errors import UsageError
from tenfold.language.decoding.engine import LLMEngine
from tenfold.language.decoding.request import Delta, Page, Stats
from tenfold.language.sampling.sampling import SamplingParams

Fetch = Callable[[list[int]], Awaitable[Mapping[bytes, Page]]]
IDLE = 0.5  # seconds between looks at whether to stop


@dataclass(frozen=True)
class _Ask:
    name: str
    prompt: list[int]
    params: SamplingParams
    pages: Mapping[bytes, Page]
    prefill_only: bool
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Queue[Delta | Exception]


class Service:
    """`done` is called in the engine's thread with the cost of every finished answer. `fetch` gives the pages of a prompt that
    another process has computed, as far as it has."""

    def __init__(
        self, engine: LLMEngine, done: Callable[[Stats], None] | None = None, fetch: Fetch | None = None
    ) -> None:
        if engine.speculation.simulated_accept is not None:
            raise UsageError(
                "simulated_accept writes texts that the model did not choose: it is for timing, not for serving."
            )
        self.engine, self._done, self._fetch = engine, done, fetch
        self._inbox: queue.SimpleQueue[_Ask | str] = queue.SimpleQueue()
        self._names = (f"request-{i}" for i in itertools.count())
        self._asked: dict[str, _Ask] = {}
        self._stop = threading.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        thread = threading.Thread(target=self._work, name="engine", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            await asyncio.to_thread(thread.join)

    async def answer(self, prompt: list[int], params: SamplingParams) -> AsyncIterator[Delta]:
        """Deltas up to the one with a finish reason. Raises UsageError for a request that the engine refuses."""
        self.engine.check(prompt)
        pages = await self._fetch(prompt) if self._fetch else {}
        async with aclosing(self._ask(prompt, params, pages)) as deltas:
            async for delta in deltas:
                yield delta

    async def prefill(self, prompt: list[int]) -> Mapping[bytes, Page]:
        """The pages of a prompt, computed here for another process. Raises UsageError like `answer`."""
        found = [delta async for delta in self._ask(prompt, SamplingParams(max_tokens=1), {}, prefill_only=True)]
        assert found[-1].pages is not None
        return found[-1].pages

    async def _ask(
        self, prompt: list[int], params: SamplingParams, pages: Mapping[bytes, Page], prefill_only: bool = False
    ) -> AsyncGenerator[Delta, None]:
        loop = asyncio.get_running_loop()
        ask = _Ask(next(self._names), prompt, params, pages, prefill_only, loop, asyncio.Queue())
        self._inbox.put(ask)
        finished = begun = False
        try:
            while not finished:
                found = await ask.answer.get()
                if isinstance(found, Exception):
                    finished = True
                    raise found
                finished = found.finish_reason is not None
                begun = begun or bool(found.token_ids)
                if found.error is not None and not (begun and isinstance(found.error, UsageError)):
                    raise found.error
                yield found
        finally:
            if not finished:
                self._inbox.put(ask.name)

    def _work(self) -> None:
        while not self._stop.is_set():
            self._read(wait=not self.engine.busy)
            if not self.engine.busy:
                continue
            try:
                deltas = self.engine.step()
            except Exception as error:  # whatever it was, the answers in progress cannot continue
                traceback.print_exc()
                for name in list(self._asked):
                    self.engine.abort(name)
                    self._tell(name, error)
                continue
            for delta in deltas:
                if delta.error is not None and not isinstance(delta.error, UsageError):
                    traceback.print_exception(delta.error)
                self._tell(delta.request_id, delta)
                if delta.stats and self._done:
                    self._done(delta.stats)

    def _read(self, wait: bool) -> None:
        """Takes in what has come; with `wait` sleeps until something does."""
        while True:
            try:
                item = self._inbox.get(wait, IDLE) if wait else self._inbox.get_nowait()
            except queue.Empty:
                return
            wait = False
            if isinstance(item, str):
                self._asked.pop(item, None)
                self.engine.abort(item)
                continue
            self._asked[item.name] = item
            try:
                self.engine.add_request(item.name, item.prompt, item.params, item.pages, item.prefill_only)
            except Exception as error:  # whatever it was, it concerns this request
                if not isinstance(error, UsageError):
                    traceback.print_exc()
                self._tell(item.name, error)

    def _tell(self, name: str, what: Delta | Exception) -> None:
        ask = self._asked.get(name)
        if ask is None:
            return
        if isinstance(what, Exception) or what.finish_reason:
            del self._asked[name]
        with suppress(RuntimeError):  # its loop has ended
            ask.loop.call_soon_threadsafe(ask.answer.put_nowait, what)

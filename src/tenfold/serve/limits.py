"""Limits and backpressure of a server: sizes, times, numbers of requests. uvicorn bounds none of them.

    limits = Limits(running=8)
    Gate(app, limits, metrics)             an ASGI middleware: bodies, admission, clients that vanish, drain
    guarded_protocol(limits)               the HTTP protocol for uvicorn: slow headers, slow readers, connections

A request passes: connection cap -> header size and time -> body size, rate and the bytes that all bodies may hold ->
a slot, or a place in the queue -> the application, which is cancelled when its client vanishes or the drain ends.

    408 too slow   413 body too large   415 compressed body   429 queue full   503 draining or no memory for bodies
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenfold.config import require

if TYPE_CHECKING:
    from tenfold.serve.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

ALWAYS_OPEN = frozenset({"/health", "/metrics"})  # answered without a slot: a full server is still watched


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds. A body may take `patience` plus its bytes at `body_rate`; a client that does not
    read is dropped after `patience`."""

    body: int = 20 * 2**20
    bodies: int = 512 * 2**20  # of all requests together
    body_rate: int = 64 * 2**10  # bytes a second that a client must send at least
    header: int = 32 * 2**10
    patience: float = 8.0
    running: int = 16  # requests in the application at once
    waiting: int = 64  # requests in the queue
    connections: int = 2048
    drain: float = 8.0  # after SIGTERM, until requests that still run are ended

    def __post_init__(self) -> None:
        for name in ("body", "bodies", "body_rate", "header", "running", "connections"):
            require(getattr(self, name) >= 1, f"limits.{name}", getattr(self, name), "a whole number >= 1")
        require(self.waiting >= 0, "limits.waiting", self.waiting, "a whole number >= 0")
        for name in ("patience", "drain"):
            require(getattr(self, name) > 0, f"limits.{name}", getattr(self, name), "a time in seconds above 0")


class Refusal(Exception):
    """A request that is answered here. The connection is closed when its body was not read to the end."""

    def __init__(self, status: int, message: str, retry_after: int | None = None, close: bool = False) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after, self.close = status, message, retry_after, close


class Gate:
    """ASGI middleware. `drain()` refuses what comes and ends what runs after `limits.drain` seconds."""

    def __init__(self, app: Application, limits: Limits, metrics: Metrics) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self.running = self.held = 0
        self.draining = False
        self._queue: deque[asyncio.Future[None]] = deque()
        self._work: set[asyncio.Future[None]] = set()

    def drain(self) -> None:
        if self.draining:
            return
        self.draining = True
        asyncio.get_running_loop().call_later(self.limits.drain, self._end_all)
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_exception(_draining())

    def _end_all(self) -> None:
        for work in self._work:
            work.cancel()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with self.metrics.request(scope) as seen:
            started = False

            async def tracked(message: Message) -> None:
                nonlocal started
                if message["type"] == "http.response.start":
                    started = True
                    seen.status = message["status"]
                await send(message)

            try:
                await self._admit(scope, receive, tracked)
            except Refusal as refusal:
                self.metrics.refused(refusal.status)
                if not started:
                    await _answer(tracked, refusal)

    async def _admit(self, scope: Message, receive: Receive, send: Send) -> None:
        if self.draining and scope["path"] not in ALWAYS_OPEN:
            raise _draining()
        headers = {name.lower(): value for name, value in scope["headers"]}
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise Refusal(415, "send the body uncompressed: Content-Encoding is not accepted.", close=True)
        with self._body_memory() as hold:
            body = await self._read(receive, headers.get(b"content-length"), hold)
            if body is None:
                return  # the client vanished while it was sending
            gone = asyncio.ensure_future(receive())  # after the body the only message is http.disconnect
            try:
                if scope["path"] in ALWAYS_OPEN:
                    await self._run(scope, body, gone, send)
                else:
                    await self._run_in_slot(scope, body, gone, send)
            finally:
                gone.cancel()

    async def _read(self, receive: Receive, announced: bytes | None, hold: Callable[[int], None]) -> list[bytes] | None:
        limit, clock = self.limits, asyncio.get_running_loop().time
        if announced is not None and (not announced.isdigit() or int(announced) > limit.body):
            raise _too_large(limit.body)
        chunks: list[bytes] = []
        size, start = 0, clock()
        while True:
            left = start + limit.patience + size / limit.body_rate - clock()
            try:
                message = await asyncio.wait_for(receive(), max(left, 0.0))
            except TimeoutError:
                text = f"the body came too slowly: {size} bytes in {clock() - start:.0f} s."
                raise Refusal(408, text, close=True) from None
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit.body:
                raise _too_large(limit.body)
            hold(len(chunk))
            chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks

    @contextlib.contextmanager
    def _body_memory(self) -> Iterator[Callable[[int], None]]:
        own = 0

        def hold(size: int) -> None:
            nonlocal own
            if self.held + size > self.limits.bodies:
                raise Refusal(503, "too many bodies are being received; try again.", retry_after=1, close=True)
            own += size
            self.held += size

        try:
            yield hold
        finally:
            self.held -= own

    async def _run_in_slot(self, scope: Message, body: list[bytes], gone: asyncio.Future[Message], send: Send) -> None:
        if self.running >= self.limits.running:
            if len(self._queue) >= self.limits.waiting:
                text = f"{self.running} requests run and {len(self._queue)} wait; try again."
                raise Refusal(429, text, retry_after=1)
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append(turn)
            self.metrics.waiting.set(len(self._queue))
            try:
                await asyncio.wait({turn, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not turn.done():
                    return  # vanished in the queue
                turn.result()  # a slot became free, or the drain began
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled() and turn.exception() is None:
                    self._pass_on()
                raise
            finally:
                if turn in self._queue:
                    self._queue.remove(turn)
                turn.cancel()
                self.metrics.waiting.set(len(self._queue))
        else:
            self.running += 1
        self.metrics.running.set(self.running)
        try:
            await self._run(scope, body, gone, send)
        finally:
            self._pass_on()
            self.metrics.running.set(self.running)

    def _pass_on(self) -> None:
        """Hands this request's slot to the next in the queue, or frees it."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    async def _run(self, scope: Message, body: list[bytes], gone: asyncio.Future[Message], send: Send) -> None:
        chunks = iter(body)
        left = len(body)

        async def receive() -> Message:
            nonlocal left
            if left > 0:
                left -= 1
                return {"type": "http.request", "body": next(chunks), "more_body": left > 0}
            return await asyncio.shield(gone)

        work = asyncio.ensure_future(self.app(scope, receive, send))
        self._work.add(work)
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._work.discard(work)
            if not work.done():  # its client vanished, or this request itself is being cancelled
                work.cancel()
                await asyncio.wait({work})
        if gone.done():
            if not work.cancelled() and (error := work.exception()) is not None:
                traceback.print_exception(error)  # the client may have its 500 and be gone: the log is all that is left
            return
        if work.cancelled():
            raise _draining()
        work.result()


def _draining() -> Refusal:
    return Refusal(503, "the server is stopping; try another one.", retry_after=5, close=True)


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"the body is larger than the {limit} bytes allowed.", close=True)


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's API words it, which clients know how to show. Half a surrogate pair, which a request may hold and
    an answer may not, is written as its escape."""
    return {"error": {"message": _printable(message), "type": kind, "param": param and _printable(param), "code": code}}


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


async def _answer(send: Send, refusal: Refusal) -> None:
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    body = json.dumps(error_body(refusal.message, kind, code=str(refusal.status))).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.retry_after is not None:
        headers.append((b"retry-after", str(refusal.retry_after).encode()))
    if refusal.close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

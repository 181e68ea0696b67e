"""HTTP protocol of uvicorn with timeouts on a connection: headers that never end, and clients that do not read.

    serve(app, host="127.0.0.1", port=8000) -> 0 after a drain

uvicorn bounds neither: a client that sends a header a byte at a time, or that leaves its answer unread, keeps its
connection and its place for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

from tenfold.errors import MissingExtra, UsageError
from tenfold.serve.limits import Gate, Limits

if TYPE_CHECKING:
    from fastapi import FastAPI

TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
FULL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 1\r\nconnection: close\r\n\r\n"


def guarded_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """The HTTP protocol class for uvicorn, with these limits."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Guarded(H11Protocol):
        _headers_due: asyncio.TimerHandle | None = None
        _reading_due: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.write(FULL)
                transport.close()
            self._headers_due = self.loop.call_later(limits.patience, self._too_slow)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not self._between_requests():
                self._cancel("_headers_due")
            elif self._headers_due is None:
                self._headers_due = self.loop.call_later(limits.patience, self._too_slow)

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel("_headers_due")
            self._cancel("_reading_due")
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._cancel("_reading_due")
            self._reading_due = self.loop.call_later(limits.patience, self.transport.abort)

        def resume_writing(self) -> None:
            self._cancel("_reading_due")
            super().resume_writing()

        def _between_requests(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _too_slow(self) -> None:
            self._headers_due = None
            if self._between_requests() and not self.transport.is_closing():
                self.transport.write(TIMED_OUT)
                self.transport.close()

        def _cancel(self, name: str) -> None:
            timer = getattr(self, name)
            if timer is not None:
                timer.cancel()
                setattr(self, name, None)

    return Guarded


def serve(app: FastAPI, host: str = "127.0.0.1", port: int = 8000) -> int:
    """Serves until SIGTERM or SIGINT, ends what runs, and returns 0. `app` is of `make_app`; port 0 takes a free one.
    The address is printed to standard error when the server listens. Raises UsageError when the address is taken."""
    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtra("uvicorn", "serve") from error

    gate: Gate = app.state.gate
    listener = _listen(host, port)

    class Server(uvicorn.Server):
        """Signals end the process with 0 after the drain, where uvicorn would raise them again."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            old = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGTERM, signal.SIGINT)}
            try:
                yield
            finally:
                for number, handler in old.items():
                    signal.signal(number, handler)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                print(f"listening on http://{host}:{listener.getsockname()[1]}", file=sys.stderr, flush=True)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            super().handle_exit(sig, frame)
            loop.call_soon_threadsafe(gate.drain)

    config = uvicorn.Config(
        gate,  # type: ignore[arg-type]
        http=guarded_protocol(gate.limits),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        h11_max_incomplete_event_size=gate.limits.header,
        timeout_graceful_shutdown=int(gate.limits.drain) + 1,
        timeout_keep_alive=5,
        log_level="warning",
        access_log=False,
        server_header=False,
    )
    server = Server(config)

    async def main() -> None:
        nonlocal loop
        loop = asyncio.get_running_loop()
        await server.serve(sockets=[listener])

    loop: asyncio.AbstractEventLoop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    return 0 if server.started else 1


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {str(error).rstrip('.')}. Give another --host or --port (0 takes a free one)."
        ) from None
    listener.set_inheritable(False)
    return listener

"""The HTTP protocol bounds time and numbers: headers that never end, clients that do not read, too many connections."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterator

import httpx
import pytest
import uvicorn

from programs.small_server import build
from serve.running_server import Server, server
from tenfold.errors import UsageError
from tenfold.serve.limits import Limits
from tenfold.serve.protocol import guarded_protocol, serve

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def small() -> Iterator[Server]:
    with server() as running:
        yield running


def against(limits: Limits, clients: Callable[[str, int], Awaitable[None]]) -> None:
    """Runs the clients against uvicorn with the guarded protocol, in this process."""

    async def both() -> None:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        http = guarded_protocol(limits)
        config = uvicorn.Config(build(limits).state.gate, http=http, lifespan="off", log_level="error")  # type: ignore[arg-type]
        running = uvicorn.Server(config)
        task = asyncio.ensure_future(running.serve(sockets=[listener]))
        try:
            await asyncio.wait_for(clients(*listener.getsockname()), 30)
        finally:
            running.should_exit = True
            await task

    asyncio.run(both())


def test_a_header_that_never_ends_is_answered_with_408_after_the_patience() -> None:
    async def clients(host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        start = time.monotonic()
        writer.write(GET[:-2] + b"X-Slow: a")
        assert (await reader.read()).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - start >= 0.4
        writer.close()

    against(Limits(patience=0.5), clients)


def test_a_connection_above_the_limit_is_told_to_come_again_and_the_others_are_served() -> None:
    async def clients(host: str, port: int) -> None:
        held = [await asyncio.open_connection(host, port) for _ in range(2)]
        for reader, writer in held:  # both are known to the server once they are answered
            writer.write(GET)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        reader, writer = await asyncio.open_connection(host, port)
        assert (await reader.readline()).startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1" in await reader.read()
        for _, opened in [*held, (reader, writer)]:
            opened.close()

    against(Limits(connections=2), clients)


def test_one_connection_serves_requests_for_longer_than_the_patience() -> None:
    async def clients(host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        for _ in range(4):
            writer.write(GET)
            assert (await reader.readuntil(b'{"status":"ok"}')).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.3)
        writer.close()

    against(Limits(patience=0.8), clients)


def test_a_client_that_does_not_read_is_dropped_and_a_long_stream_is_not_cut() -> None:
    with server(patience=1.0) as small:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(small.address)
        connection.sendall(b"GET /stream?chunks=2000&size=65536 HTTP/1.1\r\nHost: x\r\n\r\n")
        with httpx.stream("GET", small.url + "/stream?chunks=60&size=10&pause=0.1", timeout=20) as answer:
            assert len(answer.read()) == 600  # six times the patience
        deadline = time.monotonic() + 5
        while small.metric("live_work") and time.monotonic() < deadline:
            time.sleep(0.1)
        assert small.metric("live_work") == 0
        connection.close()


def test_random_bytes_never_make_a_server_error(small: Server) -> None:
    draw = random.Random(0)
    for _ in range(200):
        with small.connect() as connection:
            connection.settimeout(0.2)
            junk = draw.randbytes(draw.randrange(1, 400))
            if draw.random() < 0.5:
                junk = b"POST /double HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(junk) + junk
            try:
                connection.sendall(junk)
                connection.shutdown(socket.SHUT_WR)
                reply = connection.recv(4096)
            except (TimeoutError, ConnectionError):
                continue
            assert b" 500 " not in reply.split(b"\r\n")[0]
            assert b"Traceback" not in reply
    assert small.get("/health").status_code == 200


def test_a_taken_port_is_said_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match=r"cannot listen on 127\.0\.0\.1:\d+: .*Give another --host or --port"):
            serve(build(Limits()), port=taken.getsockname()[1])
    with pytest.raises(UsageError, match="cannot listen on"):
        serve(build(Limits()), port=70_000)

"""The decoder's side of disaggregated prefill: whatever the other process does, there is an answer, and it is counted."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from jobs import free_port
from language.engine_models import make_engine, tiny_llama
from language.small_pair import IDENTITY, computed
from tenfold.errors import UsageError
from tenfold.language.serving.prefill_client import Peer, Prefill
from tenfold.language.serving.prefill_transfer import DIGEST, TOKEN, digest, pack

PROMPT = [3, 1, 4, 1, 5, 9]
SECRET = "a secret of this test"


class Scripted:
    """A server that answers with these statuses in turn, the last one from then on; 200 sends the pages of `PROMPT`."""

    def __init__(self, *statuses: int) -> None:
        self.asked: list[dict[str, Any]] = []
        self.tokens: list[str | None] = []
        body = pack(computed(make_engine(tiny_llama(), "none"), PROMPT), IDENTITY)
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                scripted.tokens.append(self.headers[TOKEN])
                scripted.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                status = statuses[min(len(scripted.asked), len(statuses)) - 1]
                content = body if status == 200 else json.dumps({"error": {"message": "not now"}}).encode()
                self.send_response(status)
                self.send_header(DIGEST, digest(content))
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *words: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def counted() -> list[str]:
    return []


@pytest.fixture
def served() -> Iterator[list[Scripted]]:
    servers: list[Scripted] = []
    yield servers
    for one in servers:
        one.server.shutdown()
        one.server.server_close()


def peer(url: str, counted: list[str]) -> Peer:
    engine = make_engine(tiny_llama(), "none")
    return Peer(Prefill(url, SECRET, 10.0), IDENTITY, engine.runner, counted.append)


def test_a_prompt_s_pages_come_with_the_secret_and_are_those_of_the_other_process(
    served: list[Scripted], counted: list[str]
) -> None:
    served.append(Scripted(200))
    pages = asyncio.run(peer(served[0].url, counted).pages(PROMPT))
    assert list(pages) == list(computed(make_engine(tiny_llama(), "none"), PROMPT))
    assert counted == ["used"]
    assert served[0].tokens == [SECRET]
    assert served[0].asked[0]["tokens"] == PROMPT


@pytest.mark.parametrize(
    ("statuses", "asked", "result"),
    [
        ((503, 200), 2, "used"),
        ((429, 429), 2, "refused"),
        ((409,), 1, "other model"),
        ((413,), 1, "too large"),
        ((500,), 1, "refused"),
    ],
)
def test_only_a_busy_peer_is_asked_again_and_no_answer_raises(
    statuses: tuple[int, ...], asked: int, result: str, served: list[Scripted], counted: list[str]
) -> None:
    served.append(Scripted(*statuses))
    pages = asyncio.run(peer(served[0].url, counted).pages(PROMPT))
    assert bool(pages) == (result == "used")
    assert len(served[0].asked) == asked
    assert counted == [result]


def test_a_peer_that_is_gone_is_said_once_and_counted_every_time(
    counted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    own = peer(f"http://127.0.0.1:{free_port()}", counted)

    async def twice() -> list[dict[bytes, Any]]:
        return [await own.pages(PROMPT) for _ in range(2)]

    assert asyncio.run(twice()) == [{}, {}]
    assert counted == ["unreachable"] * 2
    assert capsys.readouterr().err.count("gives no pages") == 1


def test_a_prompt_of_one_token_asks_nobody(counted: list[str]) -> None:
    assert asyncio.run(peer("http://127.0.0.1:1", counted).pages([5])) == {}
    assert counted == []


@pytest.mark.parametrize("url", ["127.0.0.1:8001", "ftp://a", "http://", "http://a:x", "http://a:1/path"])
def test_an_address_that_is_none_says_what_one_looks_like(url: str, counted: list[str]) -> None:
    with pytest.raises(UsageError, match="an address like http://"):
        peer(url, counted)

"""200 requests of 20 bad kinds beside 8 streams: the streams have their undisturbed texts, each bad one its own 4xx or an end
with a reason, and memory stays bounded (R23)."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from gguf_files import fields, write
from language.engine_models import tiny_llama
from language.servers import Server

STREAMS, REQUESTS = 8, 200
TREE = {"type": "array", "items": {"$ref": "#"}, "minItems": 1}


def under(kind: str, value: Any, **more: Any) -> dict[str, Any]:
    form = {"type": kind, "json_schema": {"schema": value}} if kind == "json_schema" else {"type": kind, "value": value}
    return {"prompt": "a", "max_tokens": 12, "response_format": form, **more}


KINDS: dict[str, dict[str, Any] | bytes | None] = {
    "empty class": under("regex", "[^\\s\\S]"),
    "dead end": under("regex", "a[^\\s\\S]"),
    "ring": under("ebnf", "root ::= root"),
    "dead recursion": under("ebnf", 'root ::= "a" b\nb ::= b "c"'),
    "endless schema": under("json_schema", TREE),
    "endless grammar": under("ebnf", 'root ::= "a" root'),
    "schema bomb": under(
        "json_schema", {"type": "string", "pattern": "^((((a{1,999}){1,999}){1,999}){1,999}){1,999}$"}
    ),
    "expression bomb": under("regex", "a?" * 20_000),
    "nesting bomb": under("regex", "(" * 30_000 + "a" + ")" * 30_000),
    "long text": under("json_schema", {"const": "words " * 5000}),
    "unknown type": under("json_schema", {"type": "nonsense"}),
    "lone surrogate": b'{"prompt": "\\ud83d", "max_tokens": 2}',
    "NaN temperature": b'{"prompt": "a", "temperature": NaN}',
    "infinite penalty": b'{"prompt": "a", "presence_penalty": Infinity}',
    "huge n": {"prompt": "a", "n": 10**9},
    "huge max_tokens": {"prompt": "a", "max_tokens": 10**30},
    "many prompts": {"prompt": ["a"] * 1000},
    "no such token": {"prompt": [1, 1 << 40]},
    "deep JSON": b'{"prompt": ' + b"[" * 20_000,
    "dropped socket": None,
}
ENDLESS = ("endless schema", "endless grammar", "long text")  # they end at max_tokens


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    words = fields()
    target = tiny_llama(len(words["tokenizer.ggml.tokens"]), dim=64, hidden=96, context=300)  # type: ignore[arg-type]
    model = write(tmp_path_factory.mktemp("model") / "tiny.gguf", target, tokenizer=words)
    running = Server(model, "--batch", "12", "--waiting", "400")
    yield running
    running.process.kill()
    running.process.wait()


def stream(server: Server, i: int) -> str:
    body = {"prompt": f"the {i} ", "max_tokens": 250, "ignore_eos": True, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=300) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]", lines[-1]
    return "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1])


def ask(server: Server, kind: str) -> tuple[int, str]:
    """The status, and the finish reason or the message."""
    given = KINDS[kind]
    if given is None:
        host, port = server.url.removeprefix("http://").split(":")
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=60) as one:
            body = json.dumps({"prompt": "a", "max_tokens": 200}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
            one.sendall(head.encode() + b"\r\n\r\n" + body)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return 0, "dropped"
    content = given if isinstance(given, bytes) else json.dumps(given).encode()
    headers = {"content-type": "application/json"}
    found = httpx.post(f"{server.url}/v1/completions", content=content, headers=headers, timeout=300)
    if found.status_code != 200:
        return found.status_code, found.json()["error"]["message"]
    return 200, found.json()["choices"][0]["finish_reason"]


def resident(server: Server) -> int:
    """Bytes."""
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_bad_requests_beside_streams_hurt_nobody_else(server: Server) -> None:
    expected = [stream(server, i) for i in range(STREAMS)]
    idle = resident(server)
    kinds = [kind for kind in KINDS for _ in range(REQUESTS // len(KINDS))]
    random.Random(0).shuffle(kinds)
    with ThreadPoolExecutor(STREAMS) as good, ThreadPoolExecutor(8) as bad:
        answers = [(kind, bad.submit(ask, server, kind)) for kind in kinds]
        rounds = 0
        while rounds < 2 or not all(answer.done() for _, answer in answers):
            assert list(good.map(lambda i: stream(server, i), range(STREAMS))) == expected
            assert resident(server) - idle < 1 << 30
            rounds += 1
    for kind, answer in answers:
        status, words = answer.result()
        if kind in ENDLESS:
            assert (status, words) == (200, "length"), kind
        elif kind in ("dead end", "dead recursion"):
            assert (status, words) == (200, "error"), kind
        elif kind.endswith("bomb"):  # a processor that is fast enough may compile it
            assert status in (200, 400), (kind, status, words)
        elif kind != "dropped socket":
            assert status == 400, (kind, status, words)
            assert words
    assert server.metric('requests_total{method="POST",status="5') == 0

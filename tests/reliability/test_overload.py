"""Four times what a server takes at once, a third of the clients gone mid-stream: it says no with Retry-After, and keeps
nothing (R15)."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from gguf_files import fields, write
from language.engine_models import tiny_llama
from language.servers import Server

BATCH, WAITING = 4, 8
CLIENTS = 4 * (2 * BATCH + WAITING)  # the server runs twice its batch at once, and lets some wait


async def client(url: str, number: int, end: float, seen: Counter[str]) -> None:
    draw = random.Random(number)
    async with httpx.AsyncClient(timeout=60) as session:
        while time.monotonic() < end:
            body = {
                "prompt": "the " * draw.randint(1, 12),
                "max_tokens": draw.randint(4, 60),
                "stream": True,
                "ignore_eos": True,
                "temperature": draw.choice([0.0, 1.0]),
            }
            vanish = draw.random() < 0.3
            async with session.stream("POST", f"{url}/v1/completions", json=body) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    assert "retry-after" in answer.headers, answer.text
                    seen[str(answer.status_code)] += 1
                    await asyncio.sleep(0.05)
                    continue
                last = ""
                async for line in answer.aiter_lines():
                    last = line or last
                    if vanish:
                        break
            if vanish:  # its connection is closed, as a client's that has gone
                seen["vanished"] += 1
            else:
                assert last == "data: [DONE]", last
                seen["served"] += 1


async def crowd(url: str, seconds: float) -> Counter[str]:
    seen: Counter[str] = Counter()
    end = time.monotonic() + seconds
    await asyncio.gather(*(client(url, i, end, seen) for i in range(CLIENTS)))
    return seen


def resident(server: Server) -> float:
    """MB."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.parametrize(("seconds", "patience"), [(5, 3.0), pytest.param(60, 1.0, marks=pytest.mark.slow)])
def test_a_crowd_is_refused_politely_and_leaves_nothing_behind(tmp_path: Path, seconds: int, patience: float) -> None:
    words = fields()
    target = tiny_llama(len(words["tokenizer.ggml.tokens"]), dim=64, hidden=96, context=300)  # type: ignore[arg-type]
    model = write(tmp_path / "tiny.gguf", target, tokenizer=words)
    server = Server(model, "--batch", str(BATCH), "--waiting", str(WAITING))
    try:
        asyncio.run(crowd(server.url, 3))  # what is allocated once
        before = resident(server)
        seen = asyncio.run(crowd(server.url, seconds))
        start = time.monotonic()
        held = ("running_requests", "waiting_requests", "engine_requests", "used_pages")
        while (left := {name: server.metric(name) for name in held}) and any(left.values()):
            assert time.monotonic() - start < patience, left
            time.sleep(0.02)
        freed = time.monotonic() - start
        print(f"{dict(seen)}, all freed {freed:.2f} s after the last, {resident(server) - before:+.1f} MB")
        assert set(seen) <= {"served", "vanished", "429", "503"}
        assert seen["served"] > 0
        assert seen["vanished"] > 0
        assert seen["429"] > 0
        assert resident(server) - before < 30
        assert server.metric('requests_total{method="POST",status="5') == seen["503"]
    finally:
        server.process.kill()
        server.process.wait()

"""Answers of two processes are those of one; whatever the other process does, no request is lost (row by row below)."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from language.drafting_models import tiny_drafter, tiny_target
from language.engine_models import HYBRID, TREE, make_engine, tiny_llama
from language.servers import Server
from language.small_pair import IDENTITY, computed, small_pair
from tenfold.language.decoding.engine import LLMEngine
from tenfold.language.decoding.request import Page
from tenfold.language.drafting.ngram import HybridDrafter, NgramDrafter
from tenfold.language.drafting.protocol import Shape
from tenfold.language.drafting.speculation import Speculation
from tenfold.language.drafting.tree_drafter import TreeDrafter
from tenfold.language.sampling.sampling import SamplingParams
from tenfold.language.serving.prefill_client import Peer, Prefill
from tenfold.language.serving.prefill_transfer import (
    Identity,
    TransferError,
    digest,
    pack,
    token_from_environment,
    unpack,
)

PROMPTS = [[5], [1, 2], [3, 1, 4, 1, 5], [3, 1, 4, 1, 5, 9, 2, 6], [7, 1, 8] * 5]
TOKEN = "a secret of this test"


def eagle_engine(kind: str) -> LLMEngine:
    target = tiny_target()
    options = {"eagle1": {"method": "eagle1"}, "window": {"sliding_window": 6}}.get(kind, {})
    drafter: Any = TreeDrafter(tiny_drafter(target, **options), target)
    shape: Shape = TREE
    if kind == "eagle and prompt lookup":
        drafter = HybridDrafter(drafter, NgramDrafter())
        shape = HYBRID
    plan = Speculation(planner=lambda n, s: (shape, "without_replacement"))
    return LLMEngine(target, None, drafter, speculation=plan, page_size=4, chunk=5)


def engine_of(kind: str) -> LLMEngine:
    return make_engine(tiny_llama(), kind) if kind in ("none", "ngram") else eagle_engine(kind)


def answer(engine: LLMEngine, prompt: list[int], params: SamplingParams, pages: dict[bytes, Page]) -> tuple[list, int]:
    engine.add_request("a", prompt, params, pages)
    ids, cached = [], 0
    while engine.busy:
        for delta in engine.step():
            ids += delta.token_ids
            cached = delta.stats.cached_tokens if delta.stats else cached
    assert engine.runner.pages.free == engine.runner.pages.count
    return ids, cached


@pytest.mark.parametrize("heat", [0.0, 1.0])
@pytest.mark.parametrize(
    "kind",
    [
        *("none", "eagle and prompt lookup"),
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("ngram", "eagle3", "eagle1", "window")),
    ],
)
def test_pages_from_elsewhere_give_the_same_answer_and_nothing_is_computed_twice(kind: str, heat: float) -> None:
    there, here, alone = (engine_of(kind) for _ in range(3))
    for prompt in PROMPTS:
        params = SamplingParams(heat, max_tokens=6, seed=len(prompt))
        body = pack(computed(there, prompt), IDENTITY) if len(prompt) > 1 else b""
        pages = unpack(body, digest(body), IDENTITY, prompt, here.runner) if body else {}
        found, cached = answer(here, prompt, params, pages)
        assert cached == len(prompt) - 1
        assert found == answer(alone, prompt, params, {})[0]
    assert there.runner.pages.free == there.runner.pages.count


def test_some_of_the_pages_are_as_good_as_far_as_they_go() -> None:
    prompt = PROMPTS[-1]
    expected = answer(eagle_engine("eagle3"), prompt, SamplingParams(max_tokens=8), {})[0]
    pages = computed(eagle_engine("eagle3"), prompt)
    for missing in list(pages):
        some = {key: page for key, page in pages.items() if key != missing}
        assert answer(eagle_engine("eagle3"), prompt, SamplingParams(max_tokens=8), some)[0] == expected


def test_what_is_not_whole_or_not_ours_is_refused_with_its_reason() -> None:
    engine = eagle_engine("eagle3")
    prompt = PROMPTS[3]
    body = pack(computed(engine, prompt), IDENTITY)
    sha256 = digest(body)
    for place in range(0, len(body), 211):
        damaged = bytearray(body)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(TransferError, match="SHA-256") as found:
            unpack(bytes(damaged), sha256, IDENTITY, prompt, engine.runner)
        assert found.value.reason == "damaged"
    cases: list[tuple[bytes, Identity, list[int], str]] = [
        (body[:-5], IDENTITY, prompt, "cannot be read"),
        (b"\xff" * 64, IDENTITY, prompt, "cannot be read"),
        (b"", IDENTITY, prompt, "cannot be read"),
        (body, IDENTITY, [*prompt[:-2], 0, 0], "another prompt"),
        (body, IDENTITY, [*prompt, 1], "another prompt"),
        (body, replace(IDENTITY, target="other"), prompt, "target 'other' here, 'target' there"),
        (body, replace(IDENTITY, weights="int4"), prompt, "weights 'int4' here"),
        (pack(computed(make_engine(tiny_llama(), "none"), prompt), IDENTITY), IDENTITY, prompt, "of the shapes"),
    ]
    for given, identity, text, message in cases:
        with pytest.raises(TransferError, match=message):
            unpack(given, digest(given), identity, text, engine.runner)
    with pytest.raises(TransferError, match="SHA-256"):
        unpack(body, None, IDENTITY, prompt, engine.runner)


class Relay:
    """Stands between the two processes and can be told to misbehave."""

    def __init__(self, upstream: str) -> None:
        self.manner, self.asked, self.upstream = "honest", 0, urlsplit(upstream)
        relay = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                relay.asked += 1
                relay.answer(self, self.rfile.read(int(self.headers["content-length"])))

            def log_message(self, *words: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        headers = {name: handler.headers[name] for name in ("content-type", "x-tenfold-token")}
        if self.manner == "silent":
            time.sleep(4)
            return
        if self.manner == "other model":
            asked = json.loads(body)
            body = json.dumps({**asked, "identity": {**asked["identity"], "target": "0" * 16}}).encode()
        if self.manner == "wrong token":
            headers["x-tenfold-token"] = "not " + TOKEN
        connection = http.client.HTTPConnection(str(self.upstream.hostname), self.upstream.port, timeout=30)
        try:
            connection.request("POST", handler.path, body, headers)
            found = connection.getresponse()
            content = bytearray(found.read())
        except OSError:
            return  # the upstream is dead, and so is this connection
        if self.manner == "flip":
            content[len(content) // 2] ^= 4
        if self.manner == "endless":
            content += bytes(1 << 20)
        status = 500 if self.manner == "broken" else found.status
        with suppress(OSError):
            handler.send_response(status)
            handler.send_header("content-length", str(len(content)))
            handler.send_header("x-tenfold-sha256", found.getheader("x-tenfold-sha256") or "")
            handler.end_headers()
            handler.wfile.write(content[: len(content) // 2] if self.manner == "cut" else content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny target and its drafter as files."""
    path = tmp_path_factory.mktemp("prefill")
    small_pair(path)
    return path


@pytest.fixture(scope="module")
def pair(folder: Path) -> Iterator[tuple[Server, Relay, Server]]:
    os.environ["TENFOLD_PREFILL_TOKEN"] = TOKEN
    words = ("--drafter", str(folder / "drafter.safetensors"))
    prefill = Server(folder / "tiny.gguf", *words, "--role", "prefill")
    relay = Relay(prefill.url)
    split = ("--role", "decode", "--prefill-url", relay.url, "--prefill-timeout", "3")
    decode = Server(folder / "tiny.gguf", *words, *split)
    del os.environ["TENFOLD_PREFILL_TOKEN"]
    yield prefill, relay, decode
    for server in (prefill, decode):
        server.process.kill()
        server.process.wait()
    relay.server.shutdown()


def asked(i: int) -> dict[str, Any]:
    heat = 1.0 if i % 2 else 0.0
    prompt = ["ax", "the sea " * 9, "hé€", "123 " * 5][i % 4]
    return {"model": "tiny", "prompt": prompt, "max_tokens": 24, "temperature": heat, "seed": i}


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[str]:
    """One process, in fp32, one request at a time: the tree goes by the size of the batch, and a sampled answer by its tree."""
    from tenfold.language.decoding.engine import LLM

    llm = LLM(folder / "tiny.gguf", drafter=folder / "drafter.safetensors", weights="fp32", max_batch=1)
    bodies = [asked(i) for i in range(8)]
    params = [SamplingParams(b["temperature"], max_tokens=24, seed=b["seed"]) for b in bodies]
    return [r.text for r in llm.generate([b["prompt"] for b in bodies], params)]


def served(decode: Server, i: int) -> str:
    found = httpx.post(f"{decode.url}/v1/completions", json=asked(i), timeout=60)
    assert found.status_code == 200, found.text
    return found.json()["choices"][0]["text"]


def counted(server: Server, result: str) -> float:
    return server.metric(f'prefill_prompts_total{{result="{result}"}}')


def test_two_processes_answer_as_one(pair: tuple[Server, Relay, Server], expected: list[str]) -> None:
    prefill, relay, decode = pair
    relay.manner = "honest"
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: served(decode, i), range(0, 8, 2))) == expected[::2]  # greedy
    assert [served(decode, i) for i in range(1, 8, 2)] == expected[1::2]
    assert counted(decode, "used") == counted(prefill, "sent") == 8
    assert decode.metric("cached_prompt_tokens_total") == decode.metric("prompt_tokens_total") - 8
    assert httpx.post(f"{prefill.url}/v1/completions", json=asked(0)).status_code == 404


@pytest.mark.parametrize(
    ("manner", "reason"),
    [
        ("flip", "damaged"),
        ("other model", "other model"),
        ("wrong token", "refused"),
        ("endless", "too large"),
        ("cut", "damaged"),
        ("broken", "refused"),
        ("silent", "unreachable"),
    ],
)
def test_a_peer_that_misbehaves_costs_a_recomputation_and_is_counted(
    manner: str, reason: str, pair: tuple[Server, Relay, Server], expected: list[str]
) -> None:
    _, relay, decode = pair
    relay.manner, before = manner, counted(decode, reason)
    assert [served(decode, i) for i in (1, 2)] == expected[1:3]
    assert counted(decode, reason) == before + 2
    relay.manner = "honest"


@pytest.mark.parametrize("manner", ["silent", "dead", "drips"])
def test_a_dead_or_silent_peer_is_waited_for_once_and_comes_back(manner: str) -> None:
    held = threading.Event()
    answers: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = answers[0] if answers else b""
            if not answers and manner == "drips":
                self.send_response(200)
                self.end_headers()
                with suppress(OSError):
                    while not held.wait(0.1):
                        self.wfile.write(b"x")
            elif not answers:
                held.wait(20)
            with suppress(OSError):
                self.send_response(200)
                self.send_header("x-tenfold-sha256", digest(body))
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}" if manner != "dead" else "http://127.0.0.1:9"
    engine, results = make_engine(tiny_llama(), "none"), []
    peer = Peer(Prefill(url, TOKEN), IDENTITY, engine.runner, counted=results.append)
    prompt = PROMPTS[3]

    async def ask(times: int) -> float:
        start = time.monotonic()
        for _ in range(times):
            await peer.pages(prompt)
        return time.monotonic() - start

    async def everything() -> None:
        first = await ask(1)
        assert first < 2.6
        assert await ask(20) < 0.3  # not asked, or tried beside
        await asyncio.sleep(1.1)
        assert await ask(20) < 0.3
        assert results == ["unreachable"] * 41
        if manner == "dead":
            return
        answers.append(pack(computed(make_engine(tiny_llama(), "none"), prompt), IDENTITY))
        held.set()
        end = time.monotonic() + 15
        while "used" not in results and time.monotonic() < end:
            await peer.pages(prompt)
            await asyncio.sleep(0.05)
        assert "used" in results

    try:
        asyncio.run(everything())
    finally:
        held.set()
        server.shutdown()
        server.server_close()


def test_no_token_no_pages(pair: tuple[Server, Relay, Server]) -> None:
    prefill = pair[0]
    url = f"{prefill.url}/v1/prefill"
    for headers in ({}, {"x-tenfold-token": ""}, {"x-tenfold-token": TOKEN[:-1]}, {"x-tenfold-token": TOKEN + "x"}):
        assert httpx.post(url, json={"tokens": [1, 2], "identity": {}}, headers=headers).status_code == 401
    right = {"x-tenfold-token": TOKEN}
    for junk in (
        b"",
        b"[1]",
        b'{"tokens": [1], "identity": {}}',
        b'{"tokens": ["a", "b"], "identity": {}}',
        b"[" * 9999,
    ):
        assert httpx.post(url, content=junk, headers=right).status_code == 400
    for path in (url, f"{prefill.url}/v1/handover"):  # and the path of the last version
        assert httpx.post(path, json={"tokens": [1, 2], "identity": {}}, headers=right).status_code == 409


def test_the_peer_dies_under_load_and_no_request_is_lost(
    pair: tuple[Server, Relay, Server], expected: list[str]
) -> None:
    prefill, relay, decode = pair
    relay.manner = "honest"
    killer = threading.Timer(0.4, prefill.process.kill)
    killer.start()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: served(decode, 2 * i % 8), range(24))) == expected[::2] * 6
    killer.join()
    prefill.process.wait()
    before = counted(decode, "unreachable")
    assert served(decode, 3) == expected[3]
    assert counted(decode, "unreachable") == before + 1


def test_the_variable_of_the_last_version_is_read_with_a_warning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENFOLD_HANDOVER_TOKEN", TOKEN)
    assert token_from_environment() == TOKEN
    assert "TENFOLD_HANDOVER_TOKEN is now TENFOLD_PREFILL_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("TENFOLD_PREFILL_TOKEN", "another secret of ours")
    assert token_from_environment() == "another secret of ours"

"""A real server in its own process, asked by OpenAI's client: streamed = whole = offline text; it outlives its users."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_files import fields, write
from language.engine_models import tiny_llama
from language.servers import Server
from tenfold.language.decoding.engine import LLM
from tenfold.language.sampling.sampling import SamplingParams
from tenfold.language.serving.routes import Here, make_language_app, router


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama over bytes, so that characters come in pieces."""
    words = fields(
        **{"tokenizer.chat_template": "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}"}
    )
    size = len(words["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
    target = tiny_llama(size, dim=64, hidden=96, context=300)
    return write(tmp_path_factory.mktemp("model") / "tiny.gguf", target, tokenizer=words)


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    running = Server(model)
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture(scope="module")
def llm(model: Path) -> LLM:
    return LLM(model, drafter="ngram", weights="fp32")


PROMPTS = ["ab", "the ", "hé€", "123 "]


@pytest.mark.parametrize("heat", [0.0, 1.0])
def test_streamed_whole_and_offline_text_are_the_same(server: Server, llm: LLM, heat: float) -> None:
    for prompt in PROMPTS:
        offline = llm.generate([prompt], SamplingParams(heat, max_tokens=40, seed=5))[0]
        asked = {"model": "tiny", "prompt": prompt, "max_tokens": 40, "temperature": heat, "seed": 5}
        whole = server.client.completions.create(**asked)
        assert whole.choices[0].text == offline.text
        assert whole.choices[0].finish_reason == offline.finish_reason
        assert whole.usage.completion_tokens == len(offline.token_ids)
        parts = list(server.client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        assert "".join(p.choices[0].text for p in parts if p.choices) == offline.text
        assert parts[-1].usage.completion_tokens == len(offline.token_ids)


def test_penalties_reach_the_engine(server: Server, llm: LLM) -> None:
    plain = llm.generate(["the "], SamplingParams(max_tokens=40))[0].text
    given: dict[str, Any] = {"presence_penalty": 1.5, "frequency_penalty": 1.0}
    offline = llm.generate(["the "], SamplingParams(max_tokens=40, **given))[0].text
    asked: dict[str, Any] = {"model": "tiny", "prompt": "the ", "max_tokens": 40, "temperature": 0}
    assert server.client.completions.create(**asked, **given).choices[0].text == offline != plain
    offline = llm.generate(["the "], SamplingParams(max_tokens=40, repetition_penalty=3.0))[0].text
    extra = {"repetition_penalty": 3.0}
    assert server.client.completions.create(**asked, extra_body=extra).choices[0].text == offline != plain


def test_a_conversation_streamed_and_whole(server: Server, llm: LLM) -> None:
    messages = [{"role": "user", "content": "abé"}]
    offline = llm.chat(messages, SamplingParams(max_tokens=30))
    asked = {"model": "tiny", "messages": messages, "max_tokens": 30, "temperature": 0}
    whole = server.client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    assert whole.choices[0].message.content == offline.text
    assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
    parts = list(server.client.chat.completions.create(**asked, stream=True))
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(p.choices[0].delta.content or "" for p in parts) == offline.text
    assert parts[-1].choices[0].finish_reason == offline.finish_reason


def test_a_stop_text_is_cut_wherever_tokens_and_chunks_break_it(server: Server, llm: LLM) -> None:
    prompt = PROMPTS[1]
    text = llm.generate([prompt], SamplingParams(max_tokens=60))[0].text
    for start in range(3, len(text) - 3, 7):
        stop = text[start : start + 3]
        expected = text[: text.find(stop)]
        asked = {"model": "tiny", "prompt": prompt, "max_tokens": 60, "temperature": 0, "stop": [stop, "\x00never"]}
        whole = server.client.completions.create(**asked).choices[0]
        assert (whole.text, whole.finish_reason) == (expected, "stop")
        parts = list(server.client.completions.create(**asked, stream=True))
        assert "".join(p.choices[0].text for p in parts) == expected


def test_several_prompts_and_choices_keep_their_places(server: Server, llm: LLM) -> None:
    found = server.client.completions.create(
        model="tiny", prompt=PROMPTS[:2], n=2, max_tokens=12, temperature=1.0, seed=9
    )
    assert [c.index for c in found.choices] == [0, 1, 2, 3]
    params = [SamplingParams(1.0, max_tokens=12, seed=9 + i) for i in range(4)]
    offline = llm.generate([PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]], params)
    assert [c.text for c in found.choices] == [r.text for r in offline]


def test_an_answer_under_a_schema_is_valid(server: Server) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    found = server.client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "x"}],
        max_tokens=40,
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
    )
    assert json.loads(found.choices[0].message.content)["a"] in (1, 2)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("completions", {"prompt": ""}, "prompt is empty"),
        ("completions", {"prompt": [1, 99999]}, "not in the vocabulary"),
        ("completions", {"prompt": "a" * 400}, "does not fit"),
        ("completions", {"prompt": "a" * 400, "stream": True}, "does not fit"),
        ("completions", {"prompt": "a", "temperature": -1}, "temperature"),
        ("completions", {"prompt": "a", "model": "tinny"}, "Did you mean 'tiny'"),
        ("completions", {"prompt": "a", "presence_penalty": 3}, "presence_penalty"),
        ("completions", {"prompt": ["a"] * 65}, "at most 64"),
        ("completions", {"prompt": "a", "response_format": {"type": "regex", "value": "(a"}}, "cannot be used"),
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, "role"),
    ],
)
def test_a_bad_request_is_a_400_that_says_why_and_the_next_is_served(
    server: Server, path: str, body: dict, message: str
) -> None:
    found = httpx.post(f"{server.url}/v1/{path}", json=body, timeout=60)
    assert found.status_code == 400
    assert message in found.json()["error"]["message"]
    assert "Traceback" not in found.text
    assert server.client.completions.create(model="tiny", prompt="a", max_tokens=2).choices[0].finish_reason


def test_a_client_that_leaves_frees_its_slot_and_pages(server: Server) -> None:
    body = {"prompt": "a", "max_tokens": 250, "stream": True, "ignore_eos": True, "temperature": 1.0}
    for _ in range(3):
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
            next(answer.iter_text())
    end = time.monotonic() + 10
    while server.metric("running_requests") and time.monotonic() < end:
        time.sleep(0.05)
    assert server.metric("running_requests") == 0


def test_many_at_once_are_answered_as_if_alone_or_told_to_come_back(server: Server, llm: LLM) -> None:
    expected = [llm.generate([p], SamplingParams(max_tokens=20))[0].text for p in PROMPTS]

    def ask(i: int) -> tuple[int, int, str]:
        body = {"prompt": PROMPTS[i % 4], "max_tokens": 20, "temperature": 0}
        found = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)
        return i % 4, found.status_code, found.json()["choices"][0]["text"] if found.status_code == 200 else ""

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(ask, range(120)))
    assert {status for _, status, _ in answers} <= {200, 429, 503}
    served = [(i, text) for i, status, text in answers if status == 200]
    assert len(served) >= 40
    assert all(text == expected[i] for i, text in served)


def test_a_new_route_is_one_function(llm: LLM) -> None:
    async def tokens(text: str, served: Here) -> list[int]:
        return served.llm.tokenizer.encode(text)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=make_language_app(llm, "tiny"))
        async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
            return await client.get("/v1/tokens", params={"text": "ab"})

    before = list(router.routes)
    router.get("/v1/tokens")(tokens)
    try:
        assert asyncio.run(ask()).json() == llm.tokenizer.encode("ab")
    finally:
        router.routes[:] = before


def test_metrics_and_models_tell_what_happened(server: Server) -> None:
    assert [m.id for m in server.client.models.list()] == ["tiny"]
    before = server.metric("generation_tokens_total")
    found = httpx.post(
        f"{server.url}/v1/completions", json={"prompt": "ababab", "max_tokens": 30, "temperature": 0}, timeout=60
    ).json()
    spent = found["metrics"]["speculative_decoding"][0]
    assert spent["passes"] + spent["accepted_tokens"] >= found["usage"]["completion_tokens"]
    assert sum(spent["accepted_per_position"]) == spent["accepted_tokens"]
    assert server.metric("generation_tokens_total") - before == found["usage"]["completion_tokens"]
    assert server.metric("spec_decode_num_draft_tokens_total") >= server.metric("spec_decode_num_accepted_tokens_total")


def test_no_request_made_from_the_api_document_makes_a_server_error(server: Server) -> None:
    schema: Any = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    asked = []

    @settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def ask(data: st.DataObject) -> None:
        for operation in schema.get_all_operations():
            case = data.draw(operation.ok().as_strategy())
            if isinstance(case.body, dict):  # short answers: the other name of the limit goes before this one
                case.body["max_tokens"] = 3
                case.body.pop("max_completion_tokens", None)
            answer = case.call(timeout=60)
            assert answer.status_code < 500
            assert "Traceback" not in answer.text
            asked.append(answer.status_code)

    ask()
    assert 400 in asked
    for junk in (b"", b"\xff\xfe", b"[" * 5000, b'{"prompt": NaN}', b"null"):
        headers = {"content-type": "application/json"}
        found = httpx.post(f"{server.url}/v1/completions", content=junk, headers=headers, timeout=60)
        assert found.status_code == 400


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    text=st.text(st.characters(categories=["Cs", "L", "So", "Cc"]), min_size=1, max_size=8),
    place=st.sampled_from(["prompt", "stop", "model", "content", "role", "schema", "regex", "ebnf"]),
)
def test_any_text_anywhere_is_answered_or_a_400(server: Server, text: str, place: str) -> None:
    """Half a surrogate pair among them, as JavaScript's slice() leaves one of an emoji."""
    path, body = "completions", {"prompt": "a", "max_tokens": 2}
    if place in ("content", "role"):
        message = {"role": "user", "content": "a", place: text}
        path, body = "chat/completions", {"messages": [message], "max_tokens": 2}
    elif place == "schema":
        body["response_format"] = {"type": "json_schema", "json_schema": {"schema": {"const": text}}}
    elif place in ("regex", "ebnf"):
        body["response_format"] = {"type": place, "value": text}
    else:
        body[place] = text
    headers = {"content-type": "application/json"}
    found = httpx.post(f"{server.url}/v1/{path}", content=json.dumps(body), headers=headers, timeout=60)
    assert found.status_code in (200, 400), found.text
    if any("\ud800" <= c <= "\udfff" for c in json.loads(json.dumps(text))):
        assert found.status_code == 400


def test_a_dead_end_is_a_400_or_the_end_of_its_own_answer(server: Server, llm: LLM) -> None:
    expected = llm.generate(["the "], SamplingParams(max_tokens=60))[0].text
    formats = [{"type": "regex", "value": value} for value in ("[^\\s\\S]", "a[^\\s\\S]")]

    def good(_: int) -> str:
        asked = {"model": "tiny", "prompt": "the ", "max_tokens": 60, "temperature": 0}
        return server.client.completions.create(**asked).choices[0].text

    def bad(form: dict) -> httpx.Response:
        body = {"prompt": "a", "max_tokens": 5, "response_format": form}
        return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)

    with ThreadPoolExecutor(10) as pool:
        texts = pool.map(good, range(8))
        none, some = pool.map(bad, formats)
        assert list(texts) == [expected] * 8
    assert none.status_code == 400
    assert "no text follows it" in none.json()["error"]["message"]
    choice = some.json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("a", "error")
    assert "dead end" in choice["error"]["message"]


def test_sigterm_refuses_what_comes_and_exits_with_zero(model: Path) -> None:
    own = Server(model, "--drain", "3")
    body = {"prompt": "a", "max_tokens": 200, "ignore_eos": True, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{own.url}/v1/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        assert "text_completion" in next(lines)
        own.process.send_signal(signal.SIGTERM)
        with suppress(httpx.HTTPError):  # a connection that is refused is as good an answer
            assert httpx.post(f"{own.url}/v1/completions", json=body, timeout=20).status_code == 503
        with suppress(httpx.HTTPError):  # cut when the time is up, whole when it was enough
            list(lines)
    assert own.process.wait(timeout=20) == 0

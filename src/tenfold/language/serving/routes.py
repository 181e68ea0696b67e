"""An OpenAI-compatible server: /v1/completions, /v1/chat/completions, /v1/models, with /health and /metrics.

    app = make_language_app(LLM("smollm2-135m-instruct"), name="smollm2-135m-instruct")
    serve(app, port=8000)                                   (tenfold serve language)

Streams are server-sent events; a chunk may hold several tokens, because a pass of the target may emit several. Every answer
says what speculation did in `metrics.speculative_decoding`. Limits, drain and errors: tenfold/serve.
"""

# No `from __future__ import annotations` here: FastAPI reads the annotations of the routes, whose models exist only once
# pydantic has been imported.

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tenfold.errors import MissingExtra, UsageError, unknown_name
from tenfold.language.decoding.engine import LLM
from tenfold.language.decoding.request import Delta, Logprob, Stats
from tenfold.language.sampling.sampling import SamplingParams
from tenfold.language.serving.prefill_client import Peer, Prefill
from tenfold.language.serving.prefill_transfer import Identity
from tenfold.language.serving.service import Fetch, Service
from tenfold.serve.app import make_app
from tenfold.serve.limits import Limits, error_body
from tenfold.serve.metrics import Metrics

if TYPE_CHECKING:
    from fastapi import FastAPI

PROMPTS, CHOICES = 64, 16  # of one request at most


def make_language_app(llm: LLM, name: str, limits: Limits | None = None, prefill: Prefill | None = None) -> "FastAPI":
    """prefill: another process computes the prompts. Raises MissingExtra without the serve extra."""
    try:
        from fastapi import APIRouter
        from fastapi.responses import JSONResponse, StreamingResponse
        from pydantic import BaseModel, Field
    except ImportError as error:
        raise MissingExtra("fastapi", "serve") from error

    class StreamOptions(BaseModel):
        include_usage: bool = False

    class JSONSchema(BaseModel):
        name: str = "schema"
        schema_: dict[str, Any] = Field({}, alias="schema")

    class ResponseFormat(BaseModel):
        """What the answer has to follow; `regex` and `ebnf` carry their text in `value`."""

        type: Literal["text", "json_object", "json_schema", "regex", "ebnf"] = "text"
        json_schema: JSONSchema | None = None
        value: str | None = None

    class Common(BaseModel):
        model: str | None = None
        max_tokens: int | None = Field(None, ge=1, le=1 << 20)
        temperature: float = Field(1.0, ge=0, le=2)
        top_p: float = Field(1.0, gt=0, le=1)
        top_k: int = Field(0, ge=0, le=1 << 20)
        n: int = Field(1, ge=1, le=CHOICES)
        stream: bool = False
        stream_options: StreamOptions | None = None
        stop: str | list[str] | None = None
        seed: int | None = Field(None, ge=0, lt=1 << 62)
        ignore_eos: bool = False
        response_format: ResponseFormat | None = None
        presence_penalty: float = Field(0.0, ge=-2, le=2)
        frequency_penalty: float = Field(0.0, ge=-2, le=2)
        repetition_penalty: float = Field(1.0, gt=0, le=10)

    class Completion(Common):
        prompt: str | list[int] | list[str] | list[list[int]]
        logprobs: int | None = Field(None, ge=0, le=20)

    class Message(BaseModel):
        role: Literal["system", "user", "assistant"]
        content: str

    class ChatCompletion(Common):
        messages: list[Message] = Field(min_length=1, max_length=1024)
        max_completion_tokens: int | None = Field(None, ge=1, le=1 << 20)
        logprobs: bool = False
        top_logprobs: int | None = Field(None, ge=0, le=20)

    def lifespan(app: Any) -> AbstractAsyncContextManager[None]:
        return service.running()

    app = make_app("tenfold language", limits, lifespan)
    _watch(llm, app.state.metrics)
    service = Service(llm.engine, _counters(app.state.metrics), prefill and _fetch(prefill, llm, app.state.metrics))
    router = APIRouter()
    tokenizer = llm.tokenizer

    async def params_of(body: Common, max_tokens: int, logprobs: int | None) -> SamplingParams:
        if body.model not in (None, name):
            raise unknown_name("model", body.model, [name])
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        grammar = None
        wanted = body.response_format
        if wanted is not None and wanted.type != "text":
            grammar = await asyncio.to_thread(grammar_of, wanted)
        return SamplingParams(
            body.temperature,
            body.top_k,
            body.top_p,
            max_tokens,
            stop,
            body.seed,
            body.ignore_eos,
            logprobs,
            grammar,
            body.repetition_penalty,
            body.frequency_penalty,
            body.presence_penalty,
        )

    def grammar_of(wanted: ResponseFormat) -> Any:
        if wanted.type == "json_object":
            return llm.grammars.json()
        if wanted.type == "json_schema":
            if wanted.json_schema is None:
                raise UsageError("response_format: json_schema lacks the field json_schema.")
            return llm.grammars.json_schema(wanted.json_schema.schema_)
        if not wanted.value:
            raise UsageError(f"response_format: {wanted.type} lacks the field value.")
        return llm.grammars.regex(wanted.value) if wanted.type == "regex" else llm.grammars.ebnf(wanted.value)

    async def respond(reply: _Reply, prompts: list[list[int]], params: SamplingParams, body: Common) -> Any:
        asks = [prompt for prompt in prompts for _ in range(body.n)]
        each = [service.answer(prompt, _seeded(params, index)) for index, prompt in enumerate(asks)]
        prompt_tokens = sum(len(prompt) for prompt in prompts)
        if not body.stream:
            answers = await asyncio.gather(*(_collect(deltas) for deltas in each))
            return JSONResponse(reply.whole(answers, prompt_tokens))
        usage = bool(body.stream_options and body.stream_options.include_usage)
        # The first delta before the headers: a request that the engine refuses is a 400, not a broken stream.
        merged = _merge(each)
        first = await anext(merged)
        return StreamingResponse(_events(reply, first, merged, prompt_tokens, usage), media_type="text/event-stream")

    @router.post("/v1/completions", response_model=None)
    async def completions(body: Completion) -> Any:
        """Continues texts."""
        prompts = _prompts(body.prompt, tokenizer.encode)
        params = await params_of(body, body.max_tokens or 16, body.logprobs)
        return await respond(_Reply(llm, name, chat=False), prompts, params, body)

    @router.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatCompletion) -> Any:
        """The assistant's next turn."""
        prompt = tokenizer.chat([{"role": m.role, "content": m.content} for m in body.messages])
        most = body.max_completion_tokens or body.max_tokens or llm.engine.context
        params = await params_of(body, most, (body.top_logprobs or 0) if body.logprobs else None)
        return await respond(_Reply(llm, name, chat=True), [prompt], params, body)

    @router.get("/v1/models", response_model=None)
    async def models() -> Any:
        """What is served here."""
        entry = {"id": name, "object": "model", "created": 0, "owned_by": "tenfold"}
        return {"object": "list", "data": [entry]}

    app.include_router(router)
    return app


def _prompts(given: Any, encode: Callable[[str], list[int]]) -> list[list[int]]:
    """One prompt or several, as texts or ids."""
    single = isinstance(given, str) or not given or isinstance(given[0], int)
    several = [given] if single else given
    if len(several) > PROMPTS:
        raise UsageError(f"{len(several)} prompts: at most {PROMPTS} in one request.")
    return [encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in several]


def _seeded(params: SamplingParams, index: int) -> SamplingParams:
    """Choices of one request differ: each has a seed of its own."""
    return params if params.seed is None else replace(params, seed=params.seed + index)


@dataclass(frozen=True)
class _Answer:
    text: str
    reason: str
    stats: Stats
    logprobs: list[Logprob]


async def _collect(deltas: AsyncIterator[Delta]) -> _Answer:
    parts = [delta async for delta in deltas]
    last = parts[-1]
    assert last.stats is not None
    entries = [entry for part in parts for entry in part.logprobs]
    return _Answer("".join(p.text for p in parts), str(last.finish_reason), last.stats, entries)


async def _merge(streams: list[AsyncIterator[Delta]]) -> AsyncIterator[tuple[int, Delta]]:
    """Deltas of several answers as they come, each with its index. Ends them all when it is closed."""
    found: asyncio.Queue[tuple[int, Delta | Exception | None]] = asyncio.Queue()

    async def pump(index: int, stream: AsyncIterator[Delta]) -> None:
        try:
            async for delta in stream:
                found.put_nowait((index, delta))
            found.put_nowait((index, None))
        except Exception as error:
            found.put_nowait((index, error))

    tasks = [asyncio.create_task(pump(i, stream)) for i, stream in enumerate(streams)]
    try:
        open_ = len(tasks)
        while open_:
            index, delta = await found.get()
            if isinstance(delta, Exception):
                raise delta
            if delta is None:
                open_ -= 1
            else:
                yield index, delta
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _events(
    reply: "_Reply", first: tuple[int, Delta], rest: AsyncIterator[tuple[int, Delta]], prompt_tokens: int, usage: bool
) -> AsyncIterator[str]:
    tokens = 0
    try:
        index, delta = first
        if reply.chat:
            yield _event(reply.chunk(index, None))
        tokens += len(delta.token_ids)
        yield _event(reply.chunk(index, delta))
        async for index, delta in rest:
            tokens += len(delta.token_ids)
            yield _event(reply.chunk(index, delta))
        if usage:
            yield _event({**reply.head(), "choices": [], "usage": _usage(prompt_tokens, tokens)})
    except Exception:  # the headers are out: all that is left is to say that the stream is not whole
        yield _event(error_body("the server could not go on; its log says why.", "server_error", code="500"))
        raise
    finally:
        await rest.aclose()  # type: ignore[attr-defined]
    yield "data: [DONE]\n\n"


def _event(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values)}\n\n"


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class _Reply:
    """The words of OpenAI's API around the answers of one request."""

    def __init__(self, llm: LLM, name: str, chat: bool) -> None:
        self.llm, self.name, self.chat = llm, name, chat
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def head(self, chunk: bool = True) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.name}

    def whole(self, answers: list[_Answer], prompt_tokens: int) -> dict[str, Any]:
        choices = []
        for index, answer in enumerate(answers):
            said: dict[str, Any] = {"text": answer.text}
            if self.chat:
                said = {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
            ending = {"finish_reason": answer.reason, "logprobs": self._logprobs(answer.logprobs)}
            choices.append({"index": index, **said, **ending})
        tokens = sum(answer.stats.tokens for answer in answers)
        spent = {"speculative_decoding": [_speculation(answer.stats) for answer in answers]}
        return {
            **self.head(chunk=False), "choices": choices, "usage": _usage(prompt_tokens, tokens), "metrics": spent
        }  # fmt: skip

    def chunk(self, index: int, delta: Delta | None) -> dict[str, Any]:
        """One event; None opens a chat answer with its role."""
        text = delta.text if delta else ""
        said: dict[str, Any] = {"text": text}
        if self.chat:
            said = {"delta": {"content": text} if delta else {"role": "assistant", "content": ""}}
        logprobs = self._logprobs(delta.logprobs) if delta else None
        reason = delta.finish_reason if delta else None
        values = {**self.head(), "choices": [{"index": index, **said, "finish_reason": reason, "logprobs": logprobs}]}
        if delta and delta.stats:
            values["metrics"] = {"speculative_decoding": [_speculation(delta.stats)]}
        return values

    def _logprobs(self, entries: list[Logprob]) -> dict[str, Any] | None:
        if not entries:
            return None
        word = [self.llm.tokenizer.decode([e.token], skip_special=False) for e in entries]
        tops = [[(self.llm.tokenizer.decode([t], False), v) for t, v in e.top] for e in entries]
        if not self.chat:
            values = [e.logprob for e in entries]
            return {"tokens": word, "token_logprobs": values, "top_logprobs": [dict(top) for top in tops]}

        def entry(text: str, value: float) -> dict[str, Any]:
            return {"token": text, "logprob": value, "bytes": list(text.encode())}

        content = [
            {**entry(w, e.logprob), "top_logprobs": [entry(t, v) for t, v in top]}
            for w, e, top in zip(word, entries, tops)
        ]
        return {"content": content, "refusal": None}


def _speculation(stats: Stats) -> dict[str, Any]:
    return {
        "passes": stats.calls,
        "draft_tokens": stats.drafted,
        "accepted_tokens": sum(stats.accepted),
        "accepted_per_position": stats.accepted,
        "tokens_per_call": round(stats.tokens_per_call, 4),
    }


def _fetch(prefill: Prefill, llm: LLM, metrics: Metrics) -> Fetch:
    """What gets the pages of a prompt, and counts what became of them."""
    prompts = metrics.counter("handover_prompts", "prompts by what became of their pages", ("result",))
    return Peer(prefill, Identity.of(llm), llm.engine.runner, lambda result: prompts.labels(result).inc()).pages


def _watch(llm: LLM, metrics: Metrics) -> None:
    """What the engine holds, read when the page is asked for."""
    pages, scheduler = llm.engine.runner.pages, llm.engine.scheduler
    metrics.gauge("used_pages", "pages of keys and values in use", lambda: pages.count - pages.free)
    metrics.gauge("engine_requests", "requests in the engine", lambda: len(scheduler.running) + len(scheduler.waiting))


def _counters(metrics: Metrics) -> Any:
    """Adds the counters of speculation; returns what counts one finished answer."""
    drafts = metrics.counter("spec_decode_num_drafts", "passes of the target that checked a draft")
    drafted = metrics.counter("spec_decode_num_draft_tokens", "guessed tokens")
    accepted = metrics.counter("spec_decode_num_accepted_tokens", "guessed tokens that stood")
    placed = metrics.counter(
        "spec_decode_num_accepted_tokens_per_pos", "guessed tokens that stood, by depth", ("position",)
    )
    prompt = metrics.counter("prompt_tokens", "tokens of prompts")
    cached = metrics.counter("cached_prompt_tokens", "tokens of prompts that were not computed again")
    written = metrics.counter("generation_tokens", "emitted tokens")

    def count(stats: Stats) -> None:
        if stats.drafted:
            drafts.inc(stats.calls)
        drafted.inc(stats.drafted)
        accepted.inc(sum(stats.accepted))
        for depth, times in enumerate(stats.accepted):
            placed.labels(str(depth)).inc(times)
        prompt.inc(stats.prompt_tokens)
        cached.inc(stats.cached_tokens)
        written.inc(stats.tokens)

    return count

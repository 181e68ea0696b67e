"""HTTP routes of an OpenAI-compatible server: /v1/completions, /v1/chat/completions, /v1/models, beside /health and /metrics.

    app = make_language_app(LLM("smollm2-135m-instruct"), name="smollm2-135m-instruct")
    serve(app, port=8000)                                   (tenfold serve language)

A new route is one function here with `@router.get(...)` or `@router.post(...)`; `served: Here` gives it the model. Streams are
server-sent events; a chunk may hold several tokens, because a pass of the target may emit several. Every answer says what
speculation did in `metrics.speculative_decoding`. Limits, drain and errors: tenfold/serve. Importing this needs [serve].
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any

from tenfold.errors import MissingExtra, UsageError, unknown_name
from tenfold.language.decoding.engine import LLM
from tenfold.language.decoding.grammar import Grammars
from tenfold.language.sampling.sampling import SamplingParams
from tenfold.language.serving.bodies import (
    PROMPTS,
    ChatCompletion,
    Common,
    Completion,
    grammar_of,
    sampling_params,
)
from tenfold.language.serving.counters import counters, prefill_results, watch
from tenfold.language.serving.prefill_client import Peer, Prefill
from tenfold.language.serving.prefill_transfer import Identity
from tenfold.language.serving.replies import Reply, collect, events, merge
from tenfold.language.serving.service import Service
from tenfold.serve.app import make_app
from tenfold.serve.limits import Limits

try:
    from fastapi import APIRouter, Depends, FastAPI, Request
    from fastapi.responses import JSONResponse, StreamingResponse
except ImportError as error:
    raise MissingExtra("fastapi", "serve") from error

router = APIRouter()


@dataclass(frozen=True)
class Served:
    """What a route works with: the model, the name that clients call it, and the engine's thread."""

    llm: LLM
    name: str
    service: Service


def _served(request: Request) -> Served:
    return request.app.state.served


Here = Annotated[Served, Depends(_served)]


def make_language_app(llm: LLM, name: str, limits: Limits | None = None, prefill: Prefill | None = None) -> FastAPI:
    """The application with every route of `router`. prefill: another process computes the prompts."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with service.running():
            threading.Thread(target=_start, args=(grammars,), name="grammars", daemon=True).start()
            try:
                yield
            finally:
                grammars.close()  # a compilation in progress must not keep the server from ending

    app = make_app("tenfold language", limits, lifespan)
    metrics, grammars = app.state.metrics, llm.grammars
    watch(llm, metrics)
    fetch = None
    if prefill is not None:
        peer = Peer(prefill, identity=Identity.of(llm), runner=llm.engine.runner, counted=prefill_results(metrics))
        fetch = peer.pages
    service = Service(llm.engine, counters(metrics), fetch)
    app.state.served = Served(llm, name, service)
    app.include_router(router)
    return app


def _start(grammars: Grammars) -> None:
    """Gets ready to compile grammars. Without xgrammar a request that has one says so."""
    with suppress(MissingExtra, RuntimeError):
        grammars.start()


@router.post("/v1/completions", response_model=None)
async def completions(body: Completion, served: Here) -> Any:
    """Continues texts."""
    prompts = _prompts(served, body.prompt)
    params = await _params(served, body, max_tokens=body.max_tokens or 16, logprobs=body.logprobs)
    return await _respond(served, body, prompts, params, chat=False)


@router.post("/v1/chat/completions", response_model=None)
async def chat(body: ChatCompletion, served: Here) -> Any:
    """The assistant's next turn."""
    prompt = served.llm.tokenizer.chat([{"role": m.role, "content": m.content} for m in body.messages])
    most = body.max_completion_tokens or body.max_tokens or served.llm.engine.context
    params = await _params(served, body, max_tokens=most, logprobs=(body.top_logprobs or 0) if body.logprobs else None)
    return await _respond(served, body, [prompt], params, chat=True)


@router.get("/v1/models", response_model=None)
async def models(served: Here) -> Any:
    """What is served here."""
    entry = {"id": served.name, "object": "model", "created": 0, "owned_by": "tenfold"}
    return {"object": "list", "data": [entry]}


def _prompts(served: Served, given: Any) -> list[list[int]]:
    """One prompt or several, as texts or ids."""
    single = isinstance(given, str) or not given or isinstance(given[0], int)
    several = [given] if single else given
    if len(several) > PROMPTS:
        raise UsageError(f"{len(several)} prompts: at most {PROMPTS} in one request.")
    encode = served.llm.tokenizer.encode
    return [encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in several]


async def _params(served: Served, body: Common, max_tokens: int, logprobs: int | None) -> SamplingParams:
    if body.model not in (None, served.name):
        raise unknown_name("model", body.model, [served.name])
    wanted, grammar = body.response_format, None
    if wanted is not None and wanted.type != "text":  # compiling one takes a while
        grammar = await asyncio.to_thread(grammar_of, wanted, served.llm.grammars)
    return sampling_params(body, max_tokens=max_tokens, logprobs=logprobs, grammar=grammar)


async def _respond(served: Served, body: Common, prompts: list[list[int]], params: SamplingParams, chat: bool) -> Any:
    reply = Reply(served.llm, served.name, chat)
    asks = [prompt for prompt in prompts for _ in range(body.n)]
    each = [served.service.answer(prompt, _seeded(params, index)) for index, prompt in enumerate(asks)]
    prompt_tokens = sum(len(prompt) for prompt in prompts)
    if not body.stream:
        answers = await asyncio.gather(*(collect(deltas) for deltas in each))
        return JSONResponse(reply.whole(answers, prompt_tokens))
    usage = bool(body.stream_options and body.stream_options.include_usage)
    # The first delta before the headers: a request that the engine refuses is a 400, not a broken stream.
    merged = merge(each)
    first = await anext(merged)
    return StreamingResponse(events(reply, first, merged, prompt_tokens, usage), media_type="text/event-stream")


def _seeded(params: SamplingParams, index: int) -> SamplingParams:
    """Choices of one request differ: each has a seed of its own."""
    return params if params.seed is None else replace(params, seed=params.seed + index)

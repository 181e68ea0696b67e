"""The server of a process that only computes prompts: `tenfold serve language --role prefill`.

app = make_prefill_app(llm, token, limits)
POST /v1/handover  {"tokens": [...], "identity": {...}}, with the token in a header -> pages (serving/prefill_transfer.py)

400 a prompt that cannot be   401 no or a wrong token   409 another model   413 429 503 as every server here
"""

# No `from __future__ import annotations` here: FastAPI reads the annotations of the routes (serving/routes.py).

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from tenfold.errors import MissingExtra
from tenfold.language.decoding.engine import LLM
from tenfold.language.serving.prefill_transfer import (
    DIGEST,
    PATH,
    TOKEN,
    HandoverError,
    Identity,
    check_token,
    digest,
    pack,
    same_token,
)
from tenfold.language.serving.service import Service
from tenfold.serve.app import make_app
from tenfold.serve.limits import Limits, error_body

if TYPE_CHECKING:
    from fastapi import FastAPI


def make_prefill_app(llm: LLM, token: str, limits: Limits | None = None) -> "FastAPI":
    """Raises MissingExtra without the serve extra, UsageError for a token that is no secret."""
    try:
        from fastapi import Request
        from fastapi.responses import JSONResponse, Response
        from pydantic import BaseModel, Field, ValidationError
    except ImportError as error:
        raise MissingExtra("fastapi", "serve") from error

    class Ask(BaseModel):
        tokens: list[int] = Field(min_length=2)
        identity: dict[str, str | int]

    def lifespan(app: Any) -> AbstractAsyncContextManager[None]:
        return service.running()

    app = make_app("tenfold language, prefill", limits, lifespan)
    service, identity, secret = Service(llm.engine), Identity.of(llm), check_token(token)
    prompts = app.state.metrics.counter("handover_prompts", "prompts by what became of their pages", ("result",))
    tokens = app.state.metrics.counter("prompt_tokens", "tokens of prompts")

    def refuse(status: int, message: str, result: str) -> JSONResponse:
        prompts.labels(result).inc()
        return JSONResponse(error_body(message, "invalid_request_error", code=str(status)), status)

    @app.post(PATH, response_model=None)
    async def handover(request: Request) -> Any:
        """The pages of a prompt."""
        if not same_token(request.headers.get(TOKEN), secret):  # before anything of the body is looked at
            return refuse(401, "the hand-over token is missing or wrong.", "refused")
        try:
            ask = Ask.model_validate_json(await request.body())
        except ValidationError as error:
            first = error.errors()[0]
            return refuse(400, f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}", "refused")
        try:
            identity.check(ask.identity)
        except HandoverError as error:
            return refuse(409, str(error), error.reason)
        pages = await service.prefill(ask.tokens)
        body = await asyncio.to_thread(pack, pages, identity)
        prompts.labels("sent").inc()
        tokens.inc(len(ask.tokens))
        return Response(body, headers={DIGEST: digest(body)}, media_type="application/octet-stream")

    return app

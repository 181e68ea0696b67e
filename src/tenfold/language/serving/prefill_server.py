"""Disaggregated prefill, the server that only computes prompts: `tenfold serve language --role prefill`.

    app = make_prefill_app(llm, token, limits)
    POST /v1/prefill  {"tokens": [...], "identity": {...}}, with the token in a header -> KV cache pages (prefill_transfer.py)

400 a prompt that cannot be   401 no or a wrong token   409 another model   413 429 503 as every server here.
Importing this needs the extra [serve].
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Annotated, Any

from tenfold.errors import MissingExtra
from tenfold.language.decoding.engine import LLM
from tenfold.language.serving.counters import prefill_results
from tenfold.language.serving.prefill_transfer import (
    DIGEST,
    FORMER_PATH,
    PATH,
    TOKEN,
    Identity,
    TransferError,
    check_token,
    digest,
    pack,
    same_token,
    say_once,
)
from tenfold.language.serving.service import Service
from tenfold.serve.app import make_app
from tenfold.serve.limits import Limits, error_body

try:
    from fastapi import APIRouter, Depends, FastAPI, Request
    from fastapi.responses import JSONResponse, Response
    from pydantic import BaseModel, Field, ValidationError
except ImportError as error:
    raise MissingExtra("fastapi", "serve") from error

router = APIRouter()


class Ask(BaseModel):
    tokens: list[int] = Field(min_length=2)
    identity: dict[str, str | int]


@dataclass(frozen=True)
class Prefilling:
    """What the route works with. count: of prompts, by their result; tokens: counts those of prompts that were sent."""

    service: Service
    identity: Identity
    secret: str
    count: Callable[[str], None]
    tokens: Any

    def refuse(self, status: int, message: str, result: str) -> JSONResponse:
        self.count(result)
        return JSONResponse(error_body(message, "invalid_request_error", code=str(status)), status)


def _prefilling(request: Request) -> Prefilling:
    return request.app.state.prefilling


def make_prefill_app(llm: LLM, token: str, limits: Limits | None = None) -> FastAPI:
    """Raises UsageError for a token that is not a secret."""

    def lifespan(app: Any) -> AbstractAsyncContextManager[None]:
        return service.running()

    app = make_app("tenfold language, prefill", limits, lifespan)
    service, metrics = Service(llm.engine), app.state.metrics
    app.state.prefilling = Prefilling(
        service=service,
        identity=Identity.of(llm),
        secret=check_token(token),
        count=prefill_results(metrics),
        tokens=metrics.counter("prompt_tokens", "prompt tokens"),
    )
    app.include_router(router)
    return app


@router.post(PATH, response_model=None)
async def prefill(request: Request, here: Annotated[Prefilling, Depends(_prefilling)]) -> Any:
    """The KV cache pages of a prompt."""
    if not same_token(request.headers.get(TOKEN), here.secret):  # before anything of the body is looked at
        return here.refuse(401, "the prefill token is missing or wrong.", "refused")
    try:
        ask = Ask.model_validate_json(await request.body())
    except ValidationError as error:
        first = error.errors()[0]
        return here.refuse(400, f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}", "refused")
    try:
        here.identity.check(ask.identity)
    except TransferError as error:
        return here.refuse(409, str(error), error.reason)
    pages = await here.service.prefill(ask.tokens)
    body = await asyncio.to_thread(pack, pages, here.identity)
    here.count("sent")
    here.tokens.inc(len(ask.tokens))
    return Response(body, headers={DIGEST: digest(body)}, media_type="application/octet-stream")


@router.post(FORMER_PATH, response_model=None, include_in_schema=False)
async def former_path(request: Request, here: Annotated[Prefilling, Depends(_prefilling)]) -> Any:
    """The same under the path of the last version."""
    say_once(f"{FORMER_PATH} is now {PATH}; the former path ends with the next version.")
    return await prefill(request, here)

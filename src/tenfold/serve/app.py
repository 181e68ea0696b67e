"""HTTP application (FastAPI) with errors, health and metrics as every server here has them; the wing adds its routes.

    app = make_app("tenfold language", Limits(running=64))
    app.include_router(router)
    serve(app, port=8000)                                       (protocol.py)

Errors are JSON in the words of OpenAI's API and never hold a traceback or a path: a UsageError or a field that does not
validate is 400, anything else 500 (its traceback goes to standard error). `/health` says 503 while the server
drains; `/metrics` is for Prometheus.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from tenfold.engine.provenance import version
from tenfold.errors import MissingExtra, TenfoldError, UsageError
from tenfold.serve.limits import Gate, Limits, error_body
from tenfold.serve.metrics import Metrics

if TYPE_CHECKING:
    from fastapi import FastAPI

Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]


def make_app(title: str, limits: Limits | None = None, lifespan: Lifespan | None = None) -> FastAPI:
    """`app.state.gate` and `app.state.metrics` are its Gate and Metrics; `lifespan` starts and stops what the wing runs."""
    try:
        from fastapi import FastAPI, Request
        from fastapi.exceptions import RequestValidationError
        from fastapi.responses import JSONResponse, Response
        from starlette.exceptions import HTTPException
    except ImportError as error:
        raise MissingExtra("fastapi", "serve") from error

    app = FastAPI(title=title, version=version(), lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.metrics = Metrics()
    app.state.gate = Gate(app, limits or Limits(), app.state.metrics)  # type: ignore[arg-type]

    def answer(status: int, message: str, param: str | None = None, headers: Any = None) -> JSONResponse:
        kind = "server_error" if status >= 500 else "invalid_request_error"
        return JSONResponse(error_body(message, kind, param, str(status)), status, headers)

    def own(request: Request, error: Exception) -> JSONResponse:
        # A mistake in the request is the client's; data, weights or storage that fail are the server's.
        status = 400 if isinstance(error, UsageError) else 500
        if status == 500:
            traceback.print_exception(error)
        return answer(status, str(error) if status == 400 else "the server could not do this; its log says why.")

    def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "body"
        return answer(400, f"{place}: {first['msg']}", place)

    def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return answer(error.status_code, str(error.detail), headers=error.headers)

    def unforeseen(request: Request, error: Exception) -> JSONResponse:
        return answer(500, "the server could not do this; its log says why.")

    app.add_exception_handler(TenfoldError, own)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unforeseen)

    @app.get("/health", response_model=None)
    async def health() -> Any:
        """ok, or draining with status 503."""
        draining = app.state.gate.draining
        return JSONResponse({"status": "draining" if draining else "ok"}, 503 if draining else 200)

    @app.get("/metrics", response_model=None)
    async def metrics() -> Any:
        """Counters in Prometheus' format."""
        return Response(app.state.metrics.page(), media_type="text/plain; version=0.0.4")

    return app

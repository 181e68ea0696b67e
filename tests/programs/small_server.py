"""A server on tenfold.serve with the kinds of routes that wings have: python small_server.py RUNNING WAITING DRAIN"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Body, FastAPI, Query, Request
from fastapi.responses import StreamingResponse

from tenfold.errors import UsageError
from tenfold.serve.app import make_app
from tenfold.serve.limits import Limits
from tenfold.serve.protocol import serve

MIB = 2**20


def build(limits: Limits) -> FastAPI:
    app = make_app("small", limits)
    live = app.state.metrics.gauge("live_work", "handlers that run")

    @app.post("/size")
    async def size(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @app.post("/double")
    async def double(number: Annotated[int, Body(embed=True, ge=0)]) -> dict[str, int]:
        if number == 13:
            raise UsageError("number = 13: allowed are others.")
        return {"number": 2 * number}

    @app.get("/sleep")
    async def sleep(seconds: Annotated[float, Query(ge=0, le=60)] = 0.0) -> dict[str, float]:
        live.inc()
        try:
            await asyncio.sleep(seconds)
        finally:
            live.dec()
        return {"slept": seconds}

    @app.get("/stream", response_class=StreamingResponse)
    async def stream(
        chunks: Annotated[int, Query(ge=0, le=10_000)] = 3,
        size: Annotated[int, Query(ge=0, le=65_536)] = 4,
        pause: Annotated[float, Query(ge=0, le=1)] = 0.0,
    ) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            live.inc()
            try:
                for _ in range(chunks):
                    yield b"x" * size
                    await asyncio.sleep(pause)
            finally:
                live.dec()

        return StreamingResponse(parts(), media_type="application/octet-stream")

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("a secret at /root/secret.txt")

    return app


if __name__ == "__main__":
    running, waiting = int(sys.argv[1]), int(sys.argv[2])
    patience, drain = float(sys.argv[3]), float(sys.argv[4])
    raise SystemExit(serve(build(Limits(running=running, waiting=waiting, patience=patience, drain=drain)), port=0))

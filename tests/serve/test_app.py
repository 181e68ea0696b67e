"""The application of every server: errors in OpenAI's words without a traceback, health while it drains, and metrics."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import tenfold
from programs.small_server import build
from tenfold.errors import DataError
from tenfold.serve.app import make_app
from tenfold.serve.limits import Limits


def client(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app.state.gate, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def ask(app: FastAPI, method: str, path: str, **more: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        async with client(app) as opened:
            return await opened.request(method, path, **more)

    return asyncio.run(once())


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param", "said"),
    [
        ("GET", "/broken", None, 500, None, "its log says why"),
        ("GET", "/nowhere", None, 404, None, "Not Found"),
        ("POST", "/double", {"number": -1}, 400, "number", "number: Input should be greater"),
        ("POST", "/double", {}, 400, "number", "number: Field required"),
        ("POST", "/double", {"number": 13}, 400, None, "number = 13: allowed are others."),
        ("PUT", "/double", {"number": 1}, 405, None, "Method Not Allowed"),
    ],
)
def test_an_error_says_what_is_wrong_and_holds_no_traceback_or_path(
    method: str, path: str, body: Any, status: int, param: str | None, said: str
) -> None:
    answer = ask(build(Limits()), method, path, json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert said in error["message"]
    assert (error["param"], error["code"]) == (param, str(status))
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert "Traceback" not in answer.text
    assert "secret" not in answer.text


def test_broken_data_of_the_server_is_not_the_client_s_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    app = make_app("x")

    @app.get("/data")
    async def data() -> None:
        raise DataError("/root/secret.bin is torn")

    answer = ask(app, "GET", "/data")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    logged = capsys.readouterr().err
    assert "Traceback" in logged
    assert "DataError: /root/secret.bin is torn" in logged


def test_health_turns_to_503_while_the_server_drains_and_nothing_new_is_taken() -> None:
    async def drained() -> list[httpx.Response]:
        app = build(Limits())
        async with client(app) as opened:
            before = await opened.get("/health")
            app.state.gate.drain()
            return [before, await opened.get("/health"), await opened.get("/sleep"), await opened.get("/metrics")]

    before, health, refused, metrics = asyncio.run(drained())
    assert (before.status_code, before.json()) == (200, {"status": "ok"})
    assert (health.status_code, health.json()) == (503, {"status": "draining"})
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert 'tenfold_refused_requests_total{status="503"} 1.0' in metrics.text


def test_two_applications_count_apart_and_give_their_version() -> None:
    first, second = build(Limits()), build(Limits())
    for _ in range(3):
        assert ask(first, "POST", "/double", json={"number": 2}).json() == {"number": 4}
    line = 'tenfold_requests_total{method="POST",status="200"} 3.0'
    assert line in ask(first, "GET", "/metrics").text
    assert line not in ask(second, "GET", "/metrics").text
    described = ask(first, "GET", "/openapi.json").json()["info"]
    assert described == {"title": "small", "version": tenfold.__version__}

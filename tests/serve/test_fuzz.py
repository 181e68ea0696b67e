"""Requests made from the OpenAPI document never bring the server to a 500 or its answer to a traceback (R17)."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, settings

from programs.small_server import build
from tenfold.serve.limits import Limits

app = build(Limits())
app.router.routes = [r for r in app.router.routes if getattr(r, "path", "") not in ("/broken", "/sleep")]
schema = schemathesis.openapi.from_asgi("/openapi.json", app)


@schema.parametrize()
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_no_request_makes_a_server_error(case: schemathesis.Case) -> None:
    if case.path == "/stream" and isinstance(case.query, dict):
        case.query = {name: value for name, value in case.query.items() if name not in ("pause", "chunks")}  # time
    answer = case.call()
    assert answer.status_code < 500
    assert "Traceback" not in answer.text

"""Server replicas with Ray Serve behind one address: Ray runs them, restarts those that die, and picks one.

    with replicated("tenfold language", partial(make_app, options), replicas=2, limits=Limits(running=32)) as app:
        serve(app, port=8000)

Clients meet the server of every wing (protocol.py, limits.py), because Ray Serve's own proxies bound neither slow clients nor
bodies; behind it a request goes through a Ray handle to a replica, and its answer comes back as it is written. A request that
was in a replica when it died is answered with 503; all others go to the ones that live.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from tenfold.errors import MissingExtra, UsageError
from tenfold.serve.app import make_app
from tenfold.serve.limits import Limits, Message, error_body
from tenfold.shards.attempt import thread_environment
from tenfold.shards.ray_workers import join, own_folders

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
SCOPE = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers", "root_path")
HEALTH_CHECK = 2.0  # seconds between looks at whether a replica lives
LOST = "the replica that worked on this has died; try again."


class Replica:
    """One application in a process of Ray's. Called with a request's scope and body, it yields the answer's messages."""

    def __init__(self, build: Callable[[], FastAPI]) -> None:
        self._app, self._running, self._lock = build(), AsyncExitStack(), asyncio.Lock()
        self._started = False

    async def __call__(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
        await self._start()
        sent: asyncio.Queue[Message | None] = asyncio.Queue()
        unread = [body]

        async def receive() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            return await asyncio.get_running_loop().create_future()  # a client that leaves cancels this call

        async def work() -> None:
            try:
                await self._app(scope, receive, sent.put)
            except Exception:  # its 500 has been sent
                traceback.print_exc()
            finally:
                sent.put_nowait(None)

        task = asyncio.create_task(work())
        try:
            while (message := await sent.get()) is not None:
                yield dict(message)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _start(self) -> None:
        """What the application runs beside its requests, in the loop that serves them."""
        async with self._lock:
            if not self._started:
                await self._running.enter_async_context(self._app.router.lifespan_context(self._app))
                self._started = True


@contextmanager
def replicated(title: str, build: Callable[[], FastAPI], replicas: int, limits: Limits) -> Iterator[FastAPI]:
    """An application that hands its requests to `replicas` processes, each with what `build` makes (it is pickled).

    Joins the cluster at RAY_ADDRESS, or starts one on this machine; a replica takes an equal part of the cores. Raises
    MissingExtra without ray[serve], UsageError when no cluster answers or the replicas do not start.
    """
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise MissingExtra("ray[serve]", "cluster", "--replicas") from error
    name = title.replace(" ", "-")
    threads = max(1, (os.cpu_count() or 1) // replicas)
    join(ray, replicas * threads)
    try:
        serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        environment = {"env_vars": {**thread_environment(threads), "PYTHONPATH": own_folders()}}
        deployment = serve.deployment(Replica, name="replica").options(
            num_replicas=replicas,
            max_ongoing_requests=-(-limits.running // replicas),
            health_check_period_s=HEALTH_CHECK,
            ray_actor_options={"num_cpus": threads, "runtime_env": environment},
        )
        try:
            handle = serve.run(deployment.bind(build), name=name, route_prefix=None)
        except RuntimeError as error:
            raise UsageError(f"the replicas did not start: {_reason(serve, name) or error}") from error
        yield front(title, handle.options(stream=True), limits)
    finally:
        with suppress(Exception):  # the cluster may be gone
            if os.environ.get("RAY_ADDRESS"):  # others may serve there too
                serve.delete(name)
            else:
                serve.shutdown()
        ray.shutdown()


def _reason(serve: Any, name: str) -> str | None:
    """The error that ended the start of a replica, out of the traceback that Ray keeps."""
    with suppress(Exception):  # a message is all this is for
        said = serve.status().applications[name].deployments["replica"].message
        found = re.findall(r"^(?:\w+\.)*\w+Error: (.+)$", said, re.MULTILINE)
        return found[-1] if found else None
    return None


def front(title: str, handle: Any, limits: Limits) -> FastAPI:
    """The door: everything but /health and /metrics goes to a replica."""
    from fastapi import Request
    from fastapi.responses import JSONResponse, StreamingResponse
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    app = make_app(title, limits)
    lost = app.state.metrics.counter("lost_requests", "requests that were in a replica when it died")

    async def relay(request: Request) -> Any:
        scope = {name: request.scope[name] for name in SCOPE if name in request.scope}
        messages = handle.remote(scope, await request.body())
        try:
            first = await anext(messages)
        except (RayError, RayServeException):
            lost.inc()
            return JSONResponse(error_body(LOST, "server_error", code="503"), 503, {"retry-after": "1"})
        except asyncio.CancelledError:
            messages.cancel()
            raise
        events = any(k == b"content-type" and v.startswith(b"text/event-stream") for k, v in first["headers"])

        async def rest() -> AsyncIterator[bytes]:
            ended = False
            try:
                async for message in messages:
                    yield message.get("body", b"")
                ended = True
            except (RayError, RayServeException):
                ended = True
                lost.inc()
                if not events:
                    raise
                yield f"data: {json.dumps(error_body(LOST, 'server_error', code='503'))}\n\n".encode()
            finally:
                if not ended:  # the client has left
                    messages.cancel()

        answer = StreamingResponse(rest(), first["status"])
        answer.raw_headers = list(first["headers"])
        return answer

    relay.__annotations__["request"] = Request
    app.add_api_route("/{path:path}", relay, methods=METHODS, response_model=None, include_in_schema=False)
    return app

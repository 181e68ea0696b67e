"""Disaggregated prefill, the decoder's side: asks another process for a prompt's KV cache pages, and counts the result.

    peer = Peer(Prefill("http://127.0.0.1:8001", token), identity, runner)
    pages = await peer.pages(prompt)                a dict of pages, or an empty one: then the prompt is computed here

Nothing that goes wrong over there ends a request here; it is counted by reason and costs the time of the prompt. A peer that
is dead or silent is waited for once: after that prompts are computed here until a trial beside them succeeds
(circuit_breaker.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from tenfold.errors import UsageError
from tenfold.language.decoding.request import Page
from tenfold.language.decoding.runner import Runner
from tenfold.language.serving.circuit_breaker import CircuitBreaker
from tenfold.language.serving.prefill_transfer import (
    DIGEST,
    PATH,
    TOKEN,
    Identity,
    Reason,
    TransferError,
    check_token,
    most_bytes,
    unpack,
)

SILENT, SLOWEST = (
    2.0,
    250.0,
)  # seconds for any prompt, and tokens a second on top: a peer that takes longer does not help
ATTEMPTS, PAUSE = 2, 0.2  # tries of one prompt, and seconds between them
AGAIN = frozenset({429, 502, 503, 504})  # answers after which another try may help
REASONS: dict[int, Reason] = {409: "other model", 413: "too large"}
PIECE = 1 << 20  # bytes read at once


@dataclass(frozen=True)
class Prefill:
    """Where prompts are computed, the shared secret, and the seconds that one may take at most, all attempts together; a short
    prompt may take SILENT seconds."""

    url: str
    token: str
    timeout: float = 8.0


class Peer:
    """counted: called with "used", or the reason why not."""

    def __init__(
        self,
        prefill: Prefill,
        identity: Identity,
        runner: Runner,
        counted: Callable[[str], None] = lambda result: None,
        workers: int = 16,
    ) -> None:
        url = prefill.url
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.path not in ("", "/"):
            raise UsageError(f"--prefill-url {url!r}: an address like http://127.0.0.1:8001 is needed.")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        host = parts.hostname
        self._connect = lambda seconds: kind(host, port, timeout=seconds)
        self.url, self._token, self._timeout = url, check_token(prefill.token), prefill.timeout
        self._identity, self._runner, self._counted = identity, runner, counted
        self._room = asyncio.Semaphore(workers)
        self._said: set[str] = set()
        self._breaker = CircuitBreaker()
        self._trials: set[asyncio.Task[None]] = set()

    async def pages(self, prompt: Sequence[int]) -> dict[bytes, Page]:
        """Of a prompt of one token there are none."""
        if len(prompt) < 2:
            return {}
        try:
            async with self._room:
                if not self._breaker.closed:
                    if self._breaker.take_trial():
                        trial = asyncio.create_task(self._try(list(prompt)))
                        self._trials.add(trial)
                        trial.add_done_callback(self._trials.discard)
                    self._counted("unreachable")
                    return {}
                found = await self._asked(prompt)
        except TransferError as error:
            self._counted(error.reason)
            if error.reason not in self._said:  # once each: a dead peer must not fill the log
                self._said.add(error.reason)
                print(f"{error} Prompts are computed here; this is said once.", file=sys.stderr)
            return {}
        self._counted("used")
        return found

    async def _asked(self, prompt: Sequence[int]) -> dict[bytes, Page]:
        """`fetch` in a thread; the breaker learns whether the peer answers, whatever it answers."""
        try:
            # Names that are not resolved and headers that never end keep to no timeout of a socket.
            found = await asyncio.wait_for(_in_thread(self.fetch, prompt), self._seconds(prompt) + 0.2)
        except TimeoutError:
            self._breaker.failed()
            raise TransferError("unreachable", f"{self.url} gives no pages in time.") from None
        except TransferError as error:
            if error.reason == "unreachable":
                self._breaker.failed()
            else:
                self._breaker.succeeded()
            raise
        self._breaker.succeeded()
        return found

    async def _try(self, prompt: Sequence[int]) -> None:
        """A trial: the request itself does not wait for it."""
        with contextlib.suppress(TransferError):
            await self._asked(prompt)

    def _seconds(self, prompt: Sequence[int]) -> float:
        return min(self._timeout, SILENT + len(prompt) / SLOWEST)

    def fetch(self, prompt: Sequence[int]) -> dict[bytes, Page]:
        """Raises TransferError."""
        end = time.monotonic() + self._seconds(prompt)
        body = json.dumps({"tokens": list(prompt), "identity": asdict(self._identity)}).encode()
        for attempt in range(ATTEMPTS):
            last = attempt == ATTEMPTS - 1
            try:
                status, sha256, answer = self._ask(body, most_bytes(self._runner, len(prompt)), end)
            except (OSError, http.client.HTTPException) as error:
                if last or time.monotonic() + PAUSE >= end:
                    raise TransferError("unreachable", f"{self.url} gives no pages ({error!s}).") from error
                time.sleep(PAUSE)
                continue
            if status == 200:
                return unpack(answer, sha256, self._identity, prompt, self._runner)
            if status not in AGAIN or last or time.monotonic() + PAUSE >= end:
                break
            time.sleep(PAUSE)
        raise TransferError(REASONS.get(status, "refused"), f"{self.url} answers {status}: {_message(answer)}")

    def _ask(self, body: bytes, most: int, end: float) -> tuple[int, str | None, bytes]:
        connection = self._connect(max(0.05, end - time.monotonic()))
        try:
            headers = {"content-type": "application/json", TOKEN: self._token}
            connection.request("POST", PATH, body, headers)
            if connection.sock is not None:  # what connecting and sending took is gone
                connection.sock.settimeout(max(0.05, end - time.monotonic()))
            answer = connection.getresponse()
            read = bytearray()
            while piece := answer.read1(
                PIECE
            ):  # what is there: a peer that sends byte by byte does not hold it for ever
                read += piece
                if len(read) > most:
                    raise TransferError("too large", f"{self.url} sends more than the {most:,} bytes of these pages.")
                if time.monotonic() > end:
                    raise TimeoutError(f"{len(read):,} bytes in time")
            return answer.status, answer.getheader(DIGEST), bytes(read)
        finally:
            connection.close()


def _in_thread(function: Callable[..., Any], *words: object) -> asyncio.Future[Any]:
    """Runs in a daemon thread: one that waits for a silent peer must not keep a server from ending, as a pool's would."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: Exception | None) -> None:
        if future.done():  # its client has left
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def work() -> None:
        result, failed = None, None
        try:
            result = function(*words)
        except Exception as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=work, name="prefill transfer", daemon=True).start()
    return future


def _message(answer: bytes) -> str:
    try:
        return str(json.loads(answer)["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return f"{len(answer)} bytes that are not a message."

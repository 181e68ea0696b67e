"""Disaggregated prefill, the decoder's side: asks another process for a prompt's KV cache pages, and counts the result.

    peer = Peer(Prefill("http://127.0.0.1:8001", token), identity, runner)
    pages = await peer.pages(prompt)                a dict of pages, or an empty one: then the prompt is computed here

Nothing that goes wrong over there ends a request here; it is counted by reason and costs the time of the prompt.
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

ATTEMPTS, PAUSE = 2, 0.2  # tries of one prompt, and seconds between them
AGAIN = frozenset({429, 502, 503, 504})  # answers after which another try may help
REASONS: dict[int, Reason] = {409: "other model", 413: "too large"}
PIECE = 1 << 20  # bytes read at once


@dataclass(frozen=True)
class Prefill:
    """Where prompts are computed, the shared secret, and the seconds that one may take, all attempts together."""

    url: str
    token: str
    timeout: float = 30.0


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

    async def pages(self, prompt: Sequence[int]) -> dict[bytes, Page]:
        """Of a prompt of one token there are none."""
        if len(prompt) < 2:
            return {}
        try:
            async with self._room:
                found = await _in_thread(self.fetch, prompt)
        except TransferError as error:
            self._counted(error.reason)
            if error.reason not in self._said:  # once each: a dead peer must not fill the log
                self._said.add(error.reason)
                print(f"{error} Prompts are computed here; this is said once.", file=sys.stderr)
            return {}
        self._counted("used")
        return found

    def fetch(self, prompt: Sequence[int]) -> dict[bytes, Page]:
        """Raises TransferError."""
        end = time.monotonic() + self._timeout
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
            answer = connection.getresponse()
            read = bytearray()
            while piece := answer.read(PIECE):
                read += piece
                if len(read) > most:
                    raise TransferError("too large", f"{self.url} sends more than the {most:,} bytes of these pages.")
                if time.monotonic() > end:
                    raise TimeoutError(f"{len(read):,} bytes in {self._timeout:g} s")
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

"""The small server of tests/programs in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

PROGRAM = Path(__file__).parents[1] / "programs" / "small_server.py"


@contextmanager
def server(running: int = 8, waiting: int = 8, patience: float = 2.0, drain: float = 2.0) -> Iterator[Server]:
    words = [sys.executable, str(PROGRAM), str(running), str(waiting), str(patience), str(drain)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, "JAXTYPING_DISABLE": "1"})
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("listening on http://"), line + process.stderr.read()
        yield Server(process, line.split()[-1])
    finally:
        process.kill()
        process.wait()


class Server:
    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url
        host, _, port = url.removeprefix("http://").partition(":")
        self.address = (host, int(port))

    def get(self, path: str, timeout: float = 20.0) -> httpx.Response:
        return httpx.get(self.url + path, timeout=timeout)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=20)

    def metric(self, name: str) -> float:
        text = self.get("/metrics").text
        return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"tenfold_{name} "))

    def resident(self) -> int:
        """Bytes."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

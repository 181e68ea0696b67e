"""Compilation of grammars (xgrammar) in a process of its own, which has a time and a memory limit and can be killed.

    process = CompileProcess(tokenizer_info, seconds=10)
    text = process.compile("JSON schema", '{"type": "integer"}')      xgrammar's serialised form; UsageError at a limit

A schema of a few hundred characters can ask for hours or for all memory, and a call of the compiler cannot be interrupted. The
process starts with the first grammar (python -m tenfold.language.decoding.grammar_process), takes one at a time, and ends with
the process that started it. Messages are two lengths of four bytes, JSON, and a compiled grammar as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

from tenfold.errors import UsageError

ROOM = 1 << 30  # bytes that compiling may take
LARGEST = 16 << 20  # bytes of a compiled grammar; serialised it may be four times as long
START = 120.0  # seconds until the process must be ready
SMALLER = "Ask for less: fewer or less deeply nested parts, smaller repetitions."


class CompileProcess:
    """Starts the process when it is needed, and again after it had to be killed. Any thread may call it; one is served at a
    time."""

    def __init__(self, tokenizer_info: str, seconds: float = 10.0, room: int = ROOM) -> None:
        self.seconds, self.room = seconds, room
        self._info, self._turn = tokenizer_info, threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def compile(self, what: str, text: str) -> str:
        """The compiled grammar, serialised. Raises UsageError for one that cannot be used, and at a limit."""
        with self._turn:
            if self._closed:
                raise RuntimeError("the process that compiles grammars has been closed.")
            process = self._started()
            try:
                _write(process.stdin, {"what": what, "text": text})
                answer, compiled = self._read(process, time.monotonic() + self.seconds)
            except TimeoutError:
                self._kill()
                limit = f"takes more than the {self.seconds:g} s that compiling may take"
                raise UsageError(f"this {what} cannot be used: it {limit}. {SMALLER}") from None
            except (OSError, EOFError):  # the memory limit, or a stack that overflowed, may leave no words
                self._kill()
                limit = f"its compilation failed within {self.room >> 20:,} MB of memory"
                raise UsageError(f"this {what} cannot be used: {limit}. {SMALLER}") from None
            if not compiled:
                if answer.get("memory"):
                    self._kill()  # what it holds is not given back otherwise
                raise UsageError(f"this {what} cannot be used: {answer['reason']}")
            return compiled.decode()

    def start(self) -> None:
        """Starts the process, so that the first grammar need not wait for it."""
        with self._turn:
            if not self._closed:
                self._started()

    def close(self) -> None:
        """Ends the process for good; compilations in progress end with an error."""
        self._closed, process = True, self._process
        if process is not None:
            process.kill()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._kill()
        command = [sys.executable, "-m", __name__, str(self.seconds), str(self.room)]
        path = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env={**os.environ, "PYTHONPATH": path})
        try:
            _write(self._process.stdin, {"tokenizer": self._info})
            self._read(self._process, time.monotonic() + START)
        except (OSError, EOFError, TimeoutError) as error:
            self._kill()
            raise RuntimeError("the process that compiles grammars did not start; standard error says why.") from error
        return self._process

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what it had not read yet
                    stream.close()

    def _read(self, process: subprocess.Popen[bytes], end: float) -> tuple[dict[str, Any], bytes]:
        assert process.stdout is not None
        place = process.stdout.fileno()
        size, more = struct.unpack("<II", _bytes(place, 8, end))
        return json.loads(_bytes(place, size, end)), _bytes(place, more, end)


def _bytes(place: int, size: int, end: float) -> bytes:
    """Raises TimeoutError at `end`, EOFError when the process has gone."""
    poll, found = select.poll(), bytearray()
    poll.register(place, select.POLLIN)
    while len(found) < size:
        if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
            raise TimeoutError
        piece = os.read(place, size - len(found))
        if not piece:
            raise EOFError
        found += piece
    return bytes(found)


def _write(stream: Any, message: dict[str, Any], grammar: bytes = b"") -> None:
    data = json.dumps(message).encode()
    stream.write(struct.pack("<II", len(data), len(grammar)) + data)
    stream.write(grammar)
    stream.flush()


def _given(stream: BinaryIO) -> dict[str, Any] | None:
    """The next message; None when the other side has gone."""
    head = stream.read(8)
    return json.loads(stream.read(struct.unpack("<II", head)[0])) if len(head) == 8 else None


def main(seconds: float, room: int) -> None:
    """The process: compiles what it is given until its standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    import resource

    import xgrammar

    first = _given(sys.stdin.buffer)
    if first is None:
        return
    info = xgrammar.TokenizerInfo.deserialize_json(first["tokenizer"])
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = held + room if most == resource.RLIM_INFINITY else min(held + room, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    _write(answers, {"ready": True})
    while (asked := _given(sys.stdin.buffer)) is not None:
        signal.alarm(int(2 * seconds) + 2)  # ends this process when the one that would kill it has gone
        found = _compiled(compiler, asked["what"], asked["text"])
        if isinstance(found, bytes):
            _write(answers, {}, found)
        else:
            _write(answers, found)
        signal.alarm(0)


def _compiled(compiler: Any, what: str, text: str) -> bytes | dict[str, Any]:
    """The serialised grammar, or why there is none."""
    import torch
    import xgrammar

    try:
        if what == "JSON schema":
            found = compiler.compile_json_schema(text, any_whitespace=False)
        elif what == "regular expression":
            found = compiler.compile_regex(text)
        else:
            found = compiler.compile_grammar(text) if what == "grammar" else compiler.compile_builtin_json_grammar()
        if found.memory_size_bytes > LARGEST:
            size = f"compiled it has {found.memory_size_bytes >> 20:,} MB, and at most {LARGEST >> 20} MB are taken"
            return {"reason": f"{size}. {SMALLER}", "memory": True}
        bits = torch.zeros(1, -(-found.tokenizer_info.vocab_size // 32), dtype=torch.int32)
        xgrammar.GrammarMatcher(found).fill_next_token_bitmask(bits)
        if not bool(bits.any()):
            return {
                "reason": "no text follows it, not even an empty one. Check its classes of characters and its rules."
            }
        data = found.serialize_json().encode()
        if len(data) > 4 * LARGEST:
            return {"reason": f"compiled it takes {len(data) >> 20:,} MB to pass on. {SMALLER}", "memory": True}
        return data
    except Exception as error:  # xgrammar's errors are RuntimeErrors
        if isinstance(error, MemoryError) or "bad_alloc" in str(error):
            return {"reason": f"compiling it takes more memory than there is for it. {SMALLER}", "memory": True}
        reason = (str(error).strip().splitlines() or ["no reason given"])[-1][:300]
        return {"reason": re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", reason)}  # its clock, and a place in its source


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))

"""Answers in the words of OpenAI's API: whole JSON bodies, server-sent events, log-probabilities, acceptance statistics.

    reply = Reply(llm, name, chat=True)
    reply.whole(answers, prompt_tokens)                                a body
    events(reply, first, rest, prompt_tokens, usage=True)              the lines of a stream, up to [DONE]

Every chunk is a JSON object of its own; a chunk may hold several tokens, because a pass of the target may emit several.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from tenfold.language.decoding.engine import LLM
from tenfold.language.decoding.request import Delta, Logprob, Stats
from tenfold.serve.limits import error_body


@dataclass(frozen=True)
class Answer:
    """One choice of a reply, whole."""

    text: str
    reason: str
    stats: Stats
    logprobs: list[Logprob]
    error: Exception | None = None


async def collect(deltas: AsyncIterator[Delta]) -> Answer:
    """All of a stream as one answer."""
    parts = [delta async for delta in deltas]
    last = parts[-1]
    assert last.stats is not None
    entries = [entry for part in parts for entry in part.logprobs]
    return Answer("".join(p.text for p in parts), str(last.finish_reason), last.stats, entries, last.error)


async def merge(streams: list[AsyncIterator[Delta]]) -> AsyncIterator[tuple[int, Delta]]:
    """Deltas of several answers as they come, each with its index. Ends them all when it is closed."""
    found: asyncio.Queue[tuple[int, Delta | Exception | None]] = asyncio.Queue()

    async def pump(index: int, stream: AsyncIterator[Delta]) -> None:
        try:
            async for delta in stream:
                found.put_nowait((index, delta))
            found.put_nowait((index, None))
        except Exception as error:
            found.put_nowait((index, error))

    tasks = [asyncio.create_task(pump(i, stream)) for i, stream in enumerate(streams)]
    try:
        open_ = len(tasks)
        while open_:
            index, delta = await found.get()
            if isinstance(delta, Exception):
                raise delta
            if delta is None:
                open_ -= 1
            else:
                yield index, delta
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def events(
    reply: Reply, first: tuple[int, Delta], rest: AsyncIterator[tuple[int, Delta]], prompt_tokens: int, usage: bool
) -> AsyncIterator[str]:
    """The server-sent events of a reply. `first` has been read already, `rest` is closed at the end."""
    tokens = 0
    try:
        index, delta = first
        if reply.chat:
            yield _event(reply.chunk(index, None))
        tokens += len(delta.token_ids)
        yield _event(reply.chunk(index, delta))
        async for index, delta in rest:
            tokens += len(delta.token_ids)
            yield _event(reply.chunk(index, delta))
        if usage:
            yield _event({**reply.head(), "choices": [], "usage": _usage(prompt_tokens, tokens)})
    except Exception:  # the headers are out: all that is left is to say that the stream is not whole
        yield _event(error_body("the server could not continue; its log says why.", "server_error", code="500"))
        raise
    finally:
        await rest.aclose()  # type: ignore[attr-defined]
    yield "data: [DONE]\n\n"


def _event(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values)}\n\n"


def _ended(error: Exception | None) -> dict[str, Any]:
    """Why a choice ended with the finish reason "error"; nothing for all others."""
    return error_body(str(error), "invalid_request_error", code="400") if error is not None else {}


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class Reply:
    """The words of OpenAI's API around the answers of one request."""

    def __init__(self, llm: LLM, name: str, chat: bool) -> None:
        self.llm, self.name, self.chat = llm, name, chat
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def head(self, chunk: bool = True) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.name}

    def whole(self, answers: list[Answer], prompt_tokens: int) -> dict[str, Any]:
        choices = []
        for index, answer in enumerate(answers):
            content: dict[str, Any] = {"text": answer.text}
            if self.chat:
                content = {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
            ending = {"finish_reason": answer.reason, "logprobs": self._logprobs(answer.logprobs)}
            choices.append({"index": index, **content, **ending, **_ended(answer.error)})
        tokens = sum(answer.stats.tokens for answer in answers)
        return {
            **self.head(chunk=False),
            "choices": choices,
            "usage": _usage(prompt_tokens, tokens),
            "metrics": {"speculative_decoding": [_speculation(answer.stats) for answer in answers]},
        }

    def chunk(self, index: int, delta: Delta | None) -> dict[str, Any]:
        """One event; None opens a chat answer with its role."""
        text = delta.text if delta else ""
        content: dict[str, Any] = {"text": text}
        if self.chat:
            content = {"delta": {"content": text} if delta else {"role": "assistant", "content": ""}}
        logprobs = self._logprobs(delta.logprobs) if delta else None
        reason = delta.finish_reason if delta else None
        choice = {"index": index, **content, "finish_reason": reason, "logprobs": logprobs}
        values = {**self.head(), "choices": [{**choice, **_ended(delta.error if delta else None)}]}
        if delta and delta.stats:
            values["metrics"] = {"speculative_decoding": [_speculation(delta.stats)]}
        return values

    def _logprobs(self, entries: list[Logprob]) -> dict[str, Any] | None:
        if not entries:
            return None
        words = [self.llm.tokenizer.decode([e.token], skip_special=False) for e in entries]
        tops = [[(self.llm.tokenizer.decode([t], False), v) for t, v in e.top] for e in entries]
        if not self.chat:
            values = [e.logprob for e in entries]
            return {"tokens": words, "token_logprobs": values, "top_logprobs": [dict(top) for top in tops]}

        def entry(text: str, value: float) -> dict[str, Any]:
            return {"token": text, "logprob": value, "bytes": list(text.encode())}

        tokens = [
            {**entry(w, e.logprob), "top_logprobs": [entry(t, v) for t, v in top]}
            for w, e, top in zip(words, entries, tops)
        ]
        return {"content": tokens, "refusal": None}


def _speculation(stats: Stats) -> dict[str, Any]:
    return {
        "passes": stats.calls,
        "draft_tokens": stats.drafted,
        "accepted_tokens": sum(stats.accepted),
        "accepted_per_position": stats.accepted,
        "tokens_per_call": round(stats.tokens_per_call, 4),
    }

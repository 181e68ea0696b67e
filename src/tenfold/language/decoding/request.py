"""A request of the inference engine: its text, its pages of the KV cache, its drafter's state, and what it has cost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from tenfold.inference.pages import PageTable
from tenfold.language.drafting.protocol import DraftState
from tenfold.language.models.tokenizer import Stream, Tokenizer
from tenfold.language.sampling.sampling import SamplingParams

FinishReason = Literal["stop", "length", "abort", "prefilled", "error"]


@dataclass
class Stats:
    """What an answer has cost. `calls` are passes of the target over the root and its tree, `drafts` those with a draft token;
    prompts are not counted. accepted[d] counts the accepted tokens of depth d + 1. simulated: by a coin, so that the text is
    not the target's."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    calls: int = 0
    drafts: int = 0
    drafted: int = 0
    accepted: list[int] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    finished: float | None = None
    simulated: bool = False

    def count(self, accepted: int, drafted: int, height: int) -> None:
        """Adds a pass over a tree of this height."""
        self.calls += 1
        self.drafts += drafted > 0
        self.drafted += drafted
        self.accepted += [0] * (height - len(self.accepted))
        for depth in range(accepted):
            self.accepted[depth] += 1

    @property
    def tokens_per_call(self) -> float:
        """TPC: emitted tokens per pass of the target, the bonus token included; 1.0 without speculation."""
        return self.tokens / self.calls if self.calls else 0.0

    @property
    def tokens_per_second(self) -> float:
        """After the prompt: tokens behind the first over the time since it."""
        if self.first_token is None or self.finished is None or self.finished <= self.first_token:
            return 0.0
        return (self.tokens - 1) / (self.finished - self.first_token)


@dataclass(frozen=True)
class Logprob:
    """A token's log-probability under the model (before temperature), and the most likely tokens with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Page:
    """Rows of a prompt in the KV cache: keys and values (layers, G, rows, D) of the target and of the drafter, and the
    target's feature (F) of the last row for a drafter that wants one."""

    target: tuple[Tensor, Tensor]
    drafter: tuple[Tensor, Tensor] | None
    feature: Tensor | None


@dataclass(frozen=True)
class Delta:
    """What one step added to one answer. The last one has `finish_reason` and `stats`; that of a prompt which was only to be
    computed has its `pages` (decoding/prefix_cache.py). error: why an answer ended with the reason "error"; a UsageError where
    the request itself is the cause."""

    request_id: str
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    logprobs: list[Logprob] = field(default_factory=list)
    stats: Stats | None = None
    pages: Mapping[bytes, Page] | None = None
    error: Exception | None = None


class Request:
    """`tokens` is the text so far; of it `rows` are in the target's pages. A request can be decoded when all but the last
    are."""

    def __init__(
        self,
        name: str,
        prompt: list[int],
        params: SamplingParams,
        *,
        seed: int,
        tokenizer: Tokenizer | None,
        stops: frozenset[int],
    ) -> None:
        self.id, self.params, self.seed, self.stops = name, params, seed, stops
        self.tokens = list(prompt)
        self.prompt_length = len(prompt)
        self.rows = 0
        self.table: PageTable | None = None
        self.draft: DraftState | None = None
        self.page_features: dict[int, Tensor] = {}  # of the last row of a page, for the prefix cache
        self.last_feature: Tensor | None = None  # of the last row of the prompt that was computed here
        self.known_pages: Mapping[bytes, Page] = {}  # of its prompt, computed by another process
        self.prefill_only = False
        self.stats = Stats(prompt_tokens=len(prompt))
        self.grammar: Any = None
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self._stream = Stream(tokenizer) if tokenizer else None
        self._held = ""  # text that may be the beginning of a stop text
        self._stopped = False

    @property
    def ready(self) -> bool:
        return self.rows == len(self.tokens) - 1

    @property
    def left(self) -> int:
        """Tokens that may still be emitted."""
        return self.params.max_tokens - (len(self.tokens) - self.prompt_length)

    def fail(self, error: Exception) -> None:
        """Ends this request, and no other, with the first error that it met."""
        if self.error is None:
            self.error, self.finish_reason = error, "error"

    @contextmanager
    def own_part(self) -> Iterator[None]:
        """Around what is done for this request alone: what fails there ends it, and the step continues for the others."""
        try:
            yield
        except Exception as error:
            self.fail(error)

    def take(self, ids: list[int], logprobs: list[Logprob]) -> Delta:
        """Appends emitted tokens up to the one that ends the answer, and says what became certain. Of a request that has
        failed nothing is appended."""
        text, count = "", 0
        for token in ids[: self.left] if self.error is None else []:
            with self.own_part():
                if self.grammar is not None:
                    self.grammar.advance(token)
                count += 1
                self.tokens.append(token)
                self.stats.tokens += 1
                if token in self.stops and not self.params.ignore_eos:
                    self.finish_reason = "stop"
                    break
                text += self._stream.add(token) if self._stream else ""
                text, stopped = self._cut(text)
                if stopped or (self.grammar is not None and self.grammar.complete):
                    self.finish_reason = "stop"
            if self.finish_reason is not None:
                break
        if self.finish_reason is None and self.left <= 0:
            self.finish_reason = "length"
        if self.stats.first_token is None:
            self.stats.first_token = time.monotonic()
        if self.finish_reason:
            return self.end(text, ids[:count], logprobs[:count])
        self._held, text = self._hold(self._held + text)
        return Delta(self.id, text, ids[:count], None, logprobs[:count])

    def end(self, text: str = "", ids: list[int] | None = None, logprobs: list[Logprob] | None = None) -> Delta:
        """The last delta. What was held back comes out, unless a stop text begins in it."""
        self.stats.finished = time.monotonic()
        if not self._stopped and self._stream:
            with self.own_part():
                text, _ = self._cut(text + self._stream.end())
        whole = self._held + text
        return Delta(self.id, whole, ids or [], self.finish_reason, logprobs or [], self.stats, error=self.error)

    def _cut(self, text: str) -> tuple[str, bool]:
        """`text` follows what is held back. Where a stop text is complete, only what is before it."""
        whole = self._held + text
        places = [place for stop in self.params.stop if (place := whole.find(stop)) >= 0]
        if not places:
            return text, False
        self._stopped = True
        kept = whole[: min(places)]
        self._held = self._held[: len(kept)]
        return kept[len(self._held) :], True

    def _hold(self, text: str) -> tuple[str, str]:
        """(what may be the beginning of a stop text, what is certain)."""
        longest = 0
        for stop in self.params.stop:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:size]):
                    longest = size
                    break
        return text[len(text) - longest :], text[: len(text) - longest]

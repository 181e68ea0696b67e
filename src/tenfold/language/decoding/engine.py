"""The inference engine of language models, with continuous batching: `LLM` for programs, `LLMEngine` for servers.

    llm = LLM("smollm2-135m-instruct", drafter="ngram")
    for r in llm.generate(["Once upon a time"], SamplingParams(temperature=0.7, max_tokens=64, seed=1)):
        print(r.text, r.finish_reason, r.stats.tokens_per_call)
    llm.chat([{"role": "user", "content": "Why is the sky blue?"}])

    engine = llm.engine
    engine.add_request("a", ids, SamplingParams()); engine.step() -> [Delta, ...]; engine.abort("a")

With a drafter the text is exactly what the target would write without one (greedy: the same tokens; sampling: the same
distribution), in fewer passes. Continuous batching: arXiv 2309.06180; speculative decoding: drafting/rejection.py.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from tenfold.errors import UsageError, nearest
from tenfold.kernels.formats import Format
from tenfold.kernels.machine import bf16_refusal
from tenfold.language.decoding import isolation
from tenfold.language.decoding.async_steps import AsyncSteps
from tenfold.language.decoding.grammar import Grammars
from tenfold.language.decoding.prefix_cache import PrefixCache
from tenfold.language.decoding.request import Delta, FinishReason, Logprob, Page, Request, Stats
from tenfold.language.decoding.runner import Runner
from tenfold.language.decoding.scheduler import Scheduler
from tenfold.language.decoding.step import record
from tenfold.language.drafting.protocol import Drafter, Rule
from tenfold.language.drafting.speculation import Shape, Speculation, choose_drafter
from tenfold.language.drafting.weights import fingerprint
from tenfold.language.models.llama import Llama
from tenfold.language.models.prepare import DeviceChoice, open_target, weight_bytes
from tenfold.language.models.tokenizer import Tokenizer, load_tokenizer
from tenfold.language.sampling.sampling import SamplingParams

SAMPLES = {"smollm2-135m-instruct": ("smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


@dataclass(frozen=True)
class Result:
    """A whole answer. error: why it ended before its end, with the finish reason "error"."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stats: Stats
    logprobs: list[Logprob]
    error: Exception | None = None


class LLMEngine:
    """Requests in, deltas out; any number at once. Not thread-safe: one thread calls it.

    cache_tokens: rows of the KV cache, of all requests together. prefix_tokens: rows of the prefix cache. chunk: rows of a
    prefill pass. async_scheduling: steps stay on the device and the host writes out one while the next runs
    (decoding/async_steps.py); None: on a GPU. ahead: its name before version 0.2, taken with a warning.
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer | None = None,
        drafter: Drafter | None = None,
        *,
        speculation: Speculation | None = None,
        max_batch: int = 8,
        chunk: int = 512,
        cache_tokens: int = 16384,
        prefix_tokens: int = 2048,
        page_size: int = 16,
        async_scheduling: bool | None = None,
        ahead: bool | None = None,
    ) -> None:
        if ahead is not None:
            warnings.warn("LLMEngine(ahead=) is called async_scheduling=", DeprecationWarning, stacklevel=2)
            async_scheduling = ahead
        self.tokenizer, self.context = tokenizer, model.config.context
        self.speculation = speculation or Speculation()
        self.runner = Runner(model, drafter, max(1, cache_tokens // page_size), page_size)
        self.async_steps: AsyncSteps | None = None
        wanted = self.runner.device.type == "cuda" if async_scheduling is None else async_scheduling
        if wanted and AsyncSteps.suits(self.runner):
            most = self.speculation.largest(drafter) + 1
            self.async_steps = AsyncSteps(self.runner, max_batch, self.context + 3 * most)
        self.scheduler = Scheduler(self.runner, PrefixCache(self.runner, prefix_tokens), max_batch, chunk)
        self._names: set[str] = set()

    def check(self, prompt: Sequence[int]) -> int:
        """The room for a prompt and its answer. Raises UsageError for a prompt that is empty, too long or not of this
        vocabulary. Any thread may call it."""
        vocabulary = self.runner.model.config.vocabulary
        if not prompt:
            raise UsageError("the prompt is empty: at least one token is needed.")
        wrong = next((t for t in prompt if not 0 <= t < vocabulary), None)
        if wrong is not None:
            raise UsageError(f"token {wrong} is not in the vocabulary of {vocabulary}.")
        largest = self.speculation.largest(self.runner.drafter) + 1
        room = min(self.context, self.runner.pages.count * self.runner.pages.size - largest)
        if len(prompt) >= room:
            raise UsageError(f"a prompt of {len(prompt)} tokens does not fit: at most {room - 1} can be taken here.")
        return room

    def add_request(
        self,
        name: str,
        prompt: Sequence[int],
        params: SamplingParams,
        pages: Mapping[bytes, Page] | None = None,
        prefill_only: bool = False,
    ) -> None:
        """pages: rows of the prompt that another process has computed; what is not among them is computed here.
        prefill_only: the prompt is computed and its pages come back in the one Delta, without an answer.
        Raises UsageError for a prompt that `check` refuses, or a name in use."""
        if name in self._names:
            raise UsageError(f"request {name!r}: this name is in use.")
        room = self.check(prompt)
        params = replace(params, max_tokens=min(params.max_tokens, room - len(prompt)))
        seed = secrets.randbits(63) if params.seed is None else params.seed
        stops = self.tokenizer.stop_ids if self.tokenizer else frozenset()
        request = Request(name, list(prompt), params, seed=seed, tokenizer=self.tokenizer, stops=stops)
        if params.grammar is not None:
            request.grammar = params.grammar.matcher()
        request.known_pages, request.prefill_only = pages or {}, prefill_only
        self._names.add(name)
        self.scheduler.add(request)

    def abort(self, name: str) -> Delta | None:
        """Ends a request; its pages are free at once. None when it is not here (any more)."""
        request = self.scheduler.remove(name)
        if request is None:
            return None
        self._names.discard(name)
        request.finish_reason = "abort"
        return request.end()

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)

    def step(self) -> list[Delta]:
        """Admits, computes the next chunk of prompts, and decodes once whatever is ready. With `async_scheduling` what is
        returned may be that of a step before, while the next one runs. What fails for one request ends that one, with its
        error in its last Delta."""
        scheduler, runner = self.scheduler, self.runner
        scheduler.admit()
        parts = scheduler.prompts()
        if parts:
            isolation.prefill(runner, parts)
            for request, _ in parts:
                if request.ready:
                    with request.own_part():
                        scheduler.prefixes.add(request)
        deltas = self._prefilled() + self._failed()
        ready = [r for r in scheduler.running if r.ready]
        if not ready:
            return deltas + self._finished()
        sampled = any(r.params.temperature > 0 for r in ready)
        seeded = any(r.params.temperature > 0 and r.params.seed is not None for r in ready)
        tree, rule = self.speculation.plan(len(ready), sampled, runner.drafter, seeded)
        steps = self.async_steps
        if steps is not None and (steps.in_flight or steps.accepts(ready, tree)):
            return deltas + self._step_async(steps, ready, tree, rule)
        ready = scheduler.decodable(tree.nodes)
        if not ready:
            return deltas
        for step in isolation.decode(runner, ready, tree, rule, self.speculation.simulated_accept):
            alive = []
            for b, request in enumerate(step.requests):
                record(request, len(step.paths[b]) - 1, step.drafted[b], step.height, simulated=step.simulated)
                deltas.append(request.take(step.emitted[b], step.logprobs[b]))
                if request.finish_reason is None:
                    alive.append(b)
                else:
                    self._let_go([request])
            runner.commit(step, alive)
        return deltas + self._failed()

    def _step_async(self, steps: AsyncSteps, ready: list[Request], shape: Shape, rule: Rule) -> list[Delta]:
        """Starts the next step on the device, and returns what the oldest one there has brought."""
        tree = shape.fixed
        if tree is None or not steps.accepts(ready, shape):
            return self._finished()
        plan = steps.plan(ready, tree, rule, self.speculation.simulated_accept)
        if steps.in_flight and not steps.same(ready, plan):
            return self._finished()
        if not steps.in_flight:
            ready = self.scheduler.decodable(tree.nodes)
            if not ready:
                return []
            plan = steps.plan(ready, tree, rule, self.speculation.simulated_accept)
        return self._take(steps.step(ready, plan))

    def _finished(self) -> list[Delta]:
        """What the oldest step in flight has brought, where there is one."""
        steps = self.async_steps
        return self._take(steps.finish_oldest()) if steps is not None and steps.in_flight else []

    def _take(self, finished: list[tuple[Request, list[int]]]) -> list[Delta]:
        deltas = [request.take(tokens, []) for request, tokens in finished]
        self._let_go([request for request, _ in finished])
        return deltas

    def _failed(self) -> list[Delta]:
        """Ends the requests that failed outside of `take`."""
        failed = [r for r in self.scheduler.running if r.error is not None]
        deltas = [request.end() for request in failed]
        self._let_go(failed)
        return deltas

    def _let_go(self, requests: Sequence[Request]) -> None:
        """Frees what belongs to the requests that have ended."""
        for request in requests:
            if request.finish_reason is not None:
                self.scheduler.remove(request.id)
                self._names.discard(request.id)

    def _prefilled(self) -> list[Delta]:
        """Ends the requests that wanted no more than their pages."""
        deltas = []
        wanted = [r for r in self.scheduler.running if r.prefill_only and r.ready and r.error is None]
        for request in wanted:
            with request.own_part():
                pages = self.scheduler.prefixes.export(request)
                request.finish_reason = "prefilled"
                deltas.append(replace(request.end(), pages=pages))
                self._let_go([request])
        return deltas


class LLM:
    """A model by name, file or folder, ready to write.

    model: "smollm2-135m-instruct" (a sample, fetched once), a GGUF file, or a Hugging Face or own folder.
    drafter: "auto" (the one that belongs to this target, else "ngram"), a path, "ngram" (prompt lookup), or None.
    weights: number format, see kernels/formats.py. device: "auto" is a GPU where there is one.
    `notes` says what was chosen and why.
    """

    def __init__(
        self,
        model: str | Path = "smollm2-135m-instruct",
        drafter: str | Path | None = "auto",
        speculation: Speculation | None = None,
        *,
        weights: Format = "auto",
        max_batch: int = 8,
        cache_tokens: int = 16384,
        device: DeviceChoice = "auto",
    ) -> None:
        path = locate(model)
        target = open_target(path, weights, device)
        self.model, self.format = target.model, target.form
        self.fingerprint = fingerprint(target.source)  # of the weights in the file, whatever the format
        self.tokenizer = load_tokenizer(path)
        self.weight_bytes = weight_bytes(self.model)
        self.drafter, note = choose_drafter(drafter, target)
        self.notes = [f"weights in {self.format} ({self.weight_bytes / 1e6:.0f} MB read per pass)", note]
        if weights == "auto" and self.format == "fp32" and (reason := bf16_refusal()):
            self.notes.append(reason)
        self.engine = LLMEngine(
            self.model,
            self.tokenizer,
            self.drafter,
            speculation=speculation,
            max_batch=max_batch,
            cache_tokens=cache_tokens,
        )

    @cached_property
    def grammars(self) -> Grammars:
        """Grammars for this model's tokens: `SamplingParams(grammar=llm.grammars.json_schema(...))`."""
        return Grammars(self.tokenizer, self.model.config.vocabulary)

    def generate(
        self, prompts: Sequence[str | Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Result]:
        """Answers in the order of the prompts, computed together. A prompt is a text or its ids. One that fails (a grammar at
        a dead end) has the finish reason "error" and its error; the others are whole."""
        given = params if params is not None else SamplingParams()
        each = list(given) if isinstance(given, Sequence) else [given] * len(prompts)
        if len(each) != len(prompts):
            raise UsageError(f"{len(each)} sampling parameters for {len(prompts)} prompts: give one, or one for each.")
        ids = [self.tokenizer.encode(p) if isinstance(p, str) else list(p) for p in prompts]
        names = [f"generate-{i}" for i in range(len(ids))]
        parts: dict[str, list[Delta]] = {name: [] for name in names}
        try:
            for name, prompt, one in zip(names, ids, each):
                self.engine.add_request(name, prompt, one)
            while self.engine.busy:
                for delta in self.engine.step():
                    parts[delta.request_id].append(delta)
        except BaseException:
            for name in names:
                self.engine.abort(name)
            raise
        return [_joined(parts[name]) for name in names]

    def chat(self, messages: Sequence[Mapping[str, str]], params: SamplingParams | None = None) -> Result:
        """The assistant's next turn."""
        return self.generate([self.tokenizer.chat(messages)], params)[0]

    def stream(self, prompt: str | Sequence[int], params: SamplingParams | None = None) -> Iterator[Delta]:
        """One answer as it is written; leaving the loop early ends it."""
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        self.engine.add_request("stream", ids, params or SamplingParams())
        try:
            while self.engine.busy:
                yield from self.engine.step()
        finally:
            self.engine.abort("stream")


def locate(model: str | Path) -> Path:
    """The path of a model given by name or path."""
    path = Path(model)
    if path.exists():
        return path
    if str(model) in SAMPLES:
        from tenfold.data.samples import fetch

        sample, file = SAMPLES[str(model)]
        return fetch(sample) / file
    close = nearest(str(model), SAMPLES)
    raise UsageError(
        f"{model}: no such file or folder, and no known name.{f' Did you mean {close!r}?' if close else ''} "
        f"Known names: {', '.join(SAMPLES)}."
    )


def _joined(deltas: list[Delta]) -> Result:
    last = deltas[-1]
    assert last.stats is not None
    assert last.finish_reason is not None
    ids = [token for delta in deltas for token in delta.token_ids]
    logprobs = [entry for delta in deltas for entry in delta.logprobs]
    return Result("".join(d.text for d in deltas), ids, last.finish_reason, last.stats, logprobs, last.error)

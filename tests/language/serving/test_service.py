"""The asynchronous service: answers are those of the engine, leaving frees pages, a failed step ends only its own answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

import pytest

from language.engine_models import alone, make_engine, prompts, tiny_llama
from tenfold.errors import UsageError
from tenfold.language.decoding.engine import LLMEngine
from tenfold.language.decoding.request import Delta, Page, Stats
from tenfold.language.drafting.speculation import Speculation
from tenfold.language.sampling.sampling import SamplingParams
from tenfold.language.serving.service import Service

MODEL = tiny_llama()


async def ids(service: Service, prompt: list[int], count: int = 6) -> list[int]:
    return [t async for delta in service.answer(prompt, SamplingParams(max_tokens=count)) for t in delta.token_ids]


def test_answers_at_once_are_those_of_plain_decoding_and_each_is_counted() -> None:
    done: list[Stats] = []
    service = Service(make_engine(MODEL, "tree"), done.append)

    async def run() -> list[list[int]]:
        async with service.running():
            return await asyncio.gather(*(ids(service, prompt) for prompt in prompts(5)))

    assert asyncio.run(run()) == [alone(MODEL, prompt, 6) for prompt in prompts(5)]
    assert [stats.tokens for stats in done] == [6] * 5


def test_a_reader_that_leaves_ends_its_request_and_frees_its_pages() -> None:
    service = Service(make_engine(MODEL, "none"))

    async def run() -> list[int]:
        async with service.running():
            answer: Any = service.answer([1, 2], SamplingParams(max_tokens=150))
            async with aclosing(answer):
                await anext(answer)
            return await ids(service, [4, 5])

    assert asyncio.run(run()) == alone(MODEL, [4, 5], 6)
    pages = service.engine.runner.pages
    end = time.monotonic() + 10
    while service.engine.busy and time.monotonic() < end:
        time.sleep(0.01)
    assert pages.free == pages.count


class Failing(LLMEngine):
    """Its second step fails."""

    steps = 0

    def step(self) -> list[Delta]:
        self.steps += 1
        if self.steps == 2:
            raise ZeroDivisionError("a defect")
        return super().step()


def test_a_step_that_fails_ends_its_answers_and_the_next_request_is_served(capsys: pytest.CaptureFixture[str]) -> None:
    service = Service(Failing(MODEL, page_size=4))

    async def run() -> list[int]:
        async with service.running():
            with pytest.raises(ZeroDivisionError):
                await ids(service, [1, 2])
            return await ids(service, [4, 5])

    assert asyncio.run(run()) == alone(MODEL, [4, 5], 6)
    assert "a defect" in capsys.readouterr().err
    assert service.engine.runner.pages.free == service.engine.runner.pages.count


def test_a_prompt_that_the_engine_refuses_is_refused_before_it_waits() -> None:
    service = Service(make_engine(MODEL, "none"))

    async def run() -> None:
        async with service.running():
            with pytest.raises(UsageError, match="token 99 is not in the vocabulary"):
                await ids(service, [99])

    asyncio.run(run())


def test_pages_computed_by_one_service_are_used_by_another() -> None:
    first, done = Service(make_engine(MODEL, "none")), []
    prompt = [3, 1, 4, 1, 5, 9]

    async def run() -> list[int]:
        async def fetch(tokens: list[int]) -> Mapping[bytes, Page]:
            return await first.prefill(tokens)

        second = Service(make_engine(MODEL, "none"), done.append, fetch)
        async with first.running(), second.running():
            return await ids(second, prompt)

    assert asyncio.run(run()) == alone(MODEL, prompt, 6)
    assert [stats.cached_tokens for stats in done] == [5]


def test_text_that_the_model_did_not_choose_is_not_served() -> None:
    engine = make_engine(MODEL, "none")
    engine.speculation = Speculation(simulated_accept=0.5)
    with pytest.raises(UsageError, match="for timing, not for serving"):
        Service(engine)

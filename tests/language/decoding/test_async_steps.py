"""Asynchronous scheduling, with the host one step behind the device, writes the texts of steps that are waited for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from language.drafting_models import tiny_drafter, tiny_target
from language.engine_models import TREE, alone, finish, prompts
from tenfold.language.decoding.engine import LLMEngine
from tenfold.language.drafting.protocol import Rule
from tenfold.language.drafting.speculation import Speculation
from tenfold.language.drafting.tree import Tree
from tenfold.language.drafting.tree_drafter import TreeDrafter
from tenfold.language.sampling.sampling import SamplingParams

VARIANTS = [{}, {"layers": 2}, {"method": "eagle1"}, {"sliding_window": 6}, {"draft_vocabulary": 20}]


def engine_of(
    target: Any, asynchronous: bool, drafter: dict | None, tree: Tree = TREE, rule: Rule = "top_k", **options: Any
):
    made = None if drafter is None else TreeDrafter(tiny_drafter(target, **drafter), target)
    some = {"max_batch": 3, "chunk": 5, **options}
    plan = Speculation(tree, rule)
    return LLMEngine(target, None, made, speculation=plan, page_size=4, async_scheduling=asynchronous, **some)


def sampled(i: int) -> SamplingParams:
    """Of every kind one: plain, cut by rank, cut by mass, both, greedy."""
    cuts = [{}, {"top_k": 7}, {"top_p": 0.8}, {"top_k": 9, "top_p": 0.9}, {"temperature": 0.0}]
    return SamplingParams(**{"temperature": 0.9, "seed": i, "max_tokens": 11 + i, **cuts[i % 5]})


@pytest.mark.parametrize("drafter", [None, *VARIANTS])
def test_greedy_text_is_that_of_plain_decoding(drafter: dict | None) -> None:
    target = tiny_target(context=100)
    engine = engine_of(target, True, drafter)
    requests = {str(i): (p, SamplingParams(max_tokens=6 + 5 * i)) for i, p in enumerate([[7], *prompts(5, 96)])}
    found = finish(engine, requests)
    for name, (prompt, params) in requests.items():
        assert found[name] == alone(target, prompt, params.max_tokens), name


@pytest.mark.parametrize("rule", ["top_k", "independent", "without_replacement"])
@pytest.mark.parametrize("tokens", [2000, 100])
def test_sampled_text_is_that_of_steps_that_the_host_waits_for(rule: Rule, tokens: int) -> None:
    """100 tokens of room: pages run out, requests are preempted while their steps are in flight."""
    target = tiny_target(context=100)
    requests = {str(i): (p, sampled(i)) for i, p in enumerate(prompts(7, 96))}
    found = [
        finish(engine_of(target, asynchronous, {}, TREE, rule, cache_tokens=tokens), requests)
        for asynchronous in (False, True)
    ]
    assert found[0] == found[1]


def test_requests_that_come_end_and_need_the_host_change_no_text() -> None:
    """Grammars, penalties and log-probabilities go the other way, and back again; some answers are broken off."""
    target = tiny_target(context=100)
    found: list[dict[str, list[int]]] = []
    for asynchronous in (False, True):
        engine, texts = engine_of(target, asynchronous, {}, max_batch=4), {}
        texts = {str(i): [] for i in range(8)}
        steps = 0
        while steps < 3 or engine.busy:
            if steps % 3 == 0 and steps < 24:
                i = steps // 3
                extra: dict[str, Any] = [{}, {"logprobs": 2}, {}, {"presence_penalty": 0.5}][i % 4]
                params = SamplingParams(max_tokens=17, temperature=0.7, seed=i, **extra)
                engine.add_request(str(i), prompts(8, 96)[i], params)
            if steps == 14:
                engine.abort("4")
            for delta in engine.step():
                texts[delta.request_id] += delta.token_ids
            steps += 1
        assert engine.runner.pages.free == engine.runner.pages.count
        found.append(texts)
    for name in texts:
        if name != "4":
            assert found[0][name] == found[1][name], name
    shared = min(len(found[0]["4"]), len(found[1]["4"]))
    assert found[0]["4"][:shared] == found[1]["4"][:shared]


def test_two_steps_are_in_flight_before_the_first_is_read() -> None:
    target = tiny_target(context=100)
    engine = engine_of(target, True, {}, max_batch=1)
    engine.add_request("a", [5, 6, 7], SamplingParams(max_tokens=40))
    assert engine.async_steps is not None
    started, run = [], engine.async_steps.resident.run
    engine.async_steps.resident.run = lambda plan: (started.append(plan), run(plan))[1]  # type: ignore[method-assign]
    seen = []
    while engine.busy:
        deltas = engine.step()
        seen.append((len(started), sum(len(d.token_ids) for d in deltas)))
    assert [s for s, n in seen if n][:3] == [2, 3, 4]  # one more than was read


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_on_a_gpu_the_texts_are_those_of_the_cpu(graphs: bool) -> None:
    target = tiny_target(context=100)
    requests = {str(i): (p, sampled(i)) for i, p in enumerate(prompts(7, 96))}
    expected = finish(engine_of(target, False, {}, TREE, "without_replacement"), requests)
    engine = engine_of(tiny_target(context=100).cuda(), True, {}, TREE, "without_replacement")
    assert engine.async_steps is not None
    if not graphs:
        engine.async_steps.resident.graphs = None
    assert finish(engine, requests) == expected


@pytest.mark.gpu
def test_on_a_gpu_a_step_is_started_without_waiting() -> None:
    """Once its graph is there; the one thing that is waited for is the copy of a step before."""
    engine = engine_of(tiny_target(context=100).cuda(), True, {}, TREE, "without_replacement", max_batch=2)
    for i, prompt in enumerate(prompts(2, 96)):
        engine.add_request(str(i), prompt, SamplingParams(max_tokens=60, temperature=0.8, seed=i))
    while engine.async_steps is not None and engine.async_steps.buffers < 1:
        engine.step()
    start, started = engine.async_steps.start, []  # type: ignore[union-attr]

    def watched(requests: Any, plan: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            start(requests, plan)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        started.append(plan)

    engine.async_steps.start = watched  # type: ignore[union-attr, method-assign]
    for _ in range(4):
        engine.step()
    assert started


def test_the_old_name_of_the_option_is_taken_with_a_warning() -> None:
    target = tiny_target(context=100)
    with pytest.warns(DeprecationWarning, match="async_scheduling="):
        assert LLMEngine(target, ahead=True).async_steps is not None
    assert LLMEngine(target).async_steps is None

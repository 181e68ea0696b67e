"""Speculation changes nothing but the number of passes; neighbours, chunks, caches and preemption change nothing at all."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from language.drafting_models import AUX, tiny_drafter, tiny_target
from language.engine_models import TREE, alone, finish, make_engine, prompts, tiny_llama
from tenfold.errors import UsageError
from tenfold.language.decoding.engine import LLMEngine
from tenfold.language.drafting.protocol import Rule
from tenfold.language.drafting.speculation import Speculation
from tenfold.language.drafting.tree import Tree
from tenfold.language.drafting.tree_drafter import TreeDrafter
from tenfold.language.sampling.sampling import SamplingParams
from tenfold.language.serving.service import Service

GREEDY = SamplingParams(max_tokens=14)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("kind", ["none", "ngram", "chain", "tree", "hybrid"])
def test_greedy_text_is_that_of_plain_decoding(kind: str, batch: int) -> None:
    model = tiny_llama()
    engine = make_engine(model, kind, max_batch=batch)
    requests = {str(i): (p, GREEDY) for i, p in enumerate(prompts(6))}
    requests |= {"long": ([1, 2, 3] * 20, SamplingParams(max_tokens=20))}
    found = finish(engine, requests)
    for name, (prompt, params) in requests.items():
        assert found[name] == alone(model, prompt, params.max_tokens), name


@pytest.mark.parametrize("options", [{}, {"layers": 2}, {"method": "eagle1"}, {"sliding_window": 6}])
def test_a_drafter_with_features_keeps_the_text_and_its_rows_stay_those_of_a_fresh_pass(options: dict) -> None:
    target = tiny_target()
    network = tiny_drafter(target, **options)
    drafter = TreeDrafter(network, target)
    engine = LLMEngine(
        target, None, drafter, speculation=Speculation(TREE), max_batch=3, chunk=5, page_size=4, cache_tokens=2000
    )
    texts = [[7], *prompts(3, 96)]
    for i, prompt in enumerate(texts):
        engine.add_request(str(i), prompt, SamplingParams(max_tokens=9))
    found: dict[str, list[int]] = {str(i): [] for i in range(4)}
    while engine.busy:
        for delta in engine.step():
            found[delta.request_id] += delta.token_ids
        for request in engine.scheduler.running:
            if not request.ready or request.draft is None or request.table is None:
                continue
            out = target(torch.tensor([request.tokens]), aux_layers=AUX)
            assert request.draft.rows == request.rows == len(request.tokens) - 1
            features = out.hidden if drafter.features == "hidden" else out.aux
            fresh = TreeDrafter(network, target)
            fresh.open(engine.runner.pages.count, 4)
            state = type(request.draft)(request.tokens, request.table)
            fresh.extend([state], [request.rows], torch.tensor(request.tokens[1:]), features[0, :-1])
            slots = request.table.slots(0, request.rows)
            for ours, theirs in zip(drafter.cache.load(slots), fresh.cache.load(slots)):
                assert torch.allclose(ours, theirs, atol=1e-4)
            assert torch.allclose(request.draft.carry[1], state.carry[1], atol=1e-3)
    for i, prompt in enumerate(texts):
        assert found[str(i)] == alone(target, prompt, 9)


@settings(max_examples=5, deadline=None)
@given(st.data())
def test_an_answer_depends_on_its_request_alone(data: st.DataObject) -> None:
    """Neighbours, order and time of arrival, chunk size, prefix cache and preemption (fp32; greedy and seeded)."""
    model = tiny_llama()
    kind = data.draw(st.sampled_from(["none", "ngram", "tree", "hybrid"]))
    rule: Rule = data.draw(st.sampled_from(["top_k", "independent", "without_replacement"]))
    texts = prompts(5)
    texts[1] = [*texts[0], 5, 6, 7]  # a common beginning, for the prefix cache
    heats = [0.0, 1.0, 0.8, 1.0, 0.0]
    params = [SamplingParams(heat, top_p=0.95, max_tokens=9, seed=i) for i, heat in enumerate(heats)]
    # Alone the rule is without_replacement or top_k; a mixed batch takes the sampled ones' rule for all.
    reference = {}
    for i in range(5):
        reference |= finish(make_engine(model, kind, rule, max_batch=1), {str(i): (texts[i], params[i])})
    engine = make_engine(
        model,
        kind,
        rule,
        max_batch=data.draw(st.integers(1, 5)),
        chunk=data.draw(st.integers(1, 20)),
        cache_tokens=data.draw(st.sampled_from([48, 64, 400])),
        prefix_tokens=data.draw(st.sampled_from([0, 8, 400])),
    )
    order = data.draw(st.permutations(range(5)))
    found: dict[str, list[int]] = {str(i): [] for i in range(5)}
    while engine.busy or order:
        if order and (not engine.busy or data.draw(st.booleans())):
            i = order.pop()
            engine.add_request(str(i), texts[i], params[i])
        for delta in engine.step():
            found[delta.request_id] += delta.token_ids
    assert found == reference
    assert engine.runner.pages.free == engine.runner.pages.count


def test_a_seed_is_kept_where_the_tree_follows_the_batch() -> None:
    target = tiny_target()
    drafter = TreeDrafter(tiny_drafter(target), target)

    def answers(batch: int) -> dict[str, list[int]]:
        engine = LLMEngine(target, None, drafter, speculation=Speculation(), max_batch=batch, cache_tokens=2000)
        assert batch == 1 or Speculation().plan(batch, True, drafter) != Speculation().plan(1, True, drafter)
        params = [SamplingParams(temperature=float(i % 2), max_tokens=12, seed=i) for i in range(6)]
        return finish(engine, {str(i): (p, params[i]) for i, p in enumerate(prompts(6, 96))})

    assert answers(1) == answers(6)


def test_preemption_and_prefix_hits_do_happen_in_such_a_run() -> None:
    model = tiny_llama()
    engine = make_engine(model, "tree", max_batch=4, cache_tokens=56, prefix_tokens=400)
    text = [3, 1, 4, 1, 5, 9, 2, 6, 5]
    found = finish(engine, {str(i): ([*text, i], SamplingParams(max_tokens=20)) for i in range(6)})
    assert engine.scheduler.preemptions > 0
    assert len(engine.scheduler.prefixes) >= 2
    engine.add_request("again", [*text, 0], SamplingParams(max_tokens=20))
    engine.step()
    assert engine.scheduler.running[0].stats.cached_tokens == 8
    assert all(found[str(i)] == alone(model, [*text, i], 20) for i in range(6))


@pytest.mark.parametrize("count", [80, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_no_page_is_lost_over_many_requests_with_aborts(count: int) -> None:
    model, draw = tiny_llama(), random.Random(0)
    engine = make_engine(model, "ngram", max_batch=6, cache_tokens=160, chunk=9)
    waiting, live, ended = list(range(count)), set(), 0
    while waiting or engine.busy:
        while waiting and len(live) < 12:
            name = str(waiting.pop())
            prompt = [draw.randrange(23) for _ in range(draw.randint(1, 30))]
            heat = draw.choice([0.0, 1.0])
            engine.add_request(name, prompt, SamplingParams(heat, max_tokens=draw.randint(1, 12), seed=1))
            live.add(name)
        for delta in engine.step():
            if delta.finish_reason:
                live.discard(delta.request_id)
                ended += 1
        if live and draw.random() < 0.3:
            name = draw.choice(sorted(live))
            last = engine.abort(name)
            assert last is not None
            assert last.finish_reason == "abort"
            live.discard(name)
            ended += 1
        held = sum(len(r.table.pages) for r in engine.scheduler.running if r.table)
        assert engine.runner.pages.free == engine.runner.pages.count - held
    assert ended == count
    assert engine.runner.pages.free == engine.runner.pages.count
    assert engine.abort("gone") is None


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("rule", ["top_k", "independent", "without_replacement"])
def test_two_tokens_through_the_engine_follow_the_targets_joint_law(rule: Rule, batch: int) -> None:
    vocabulary, count, prompt = 5, 6000, [1, 2, 3]
    model = tiny_llama(vocabulary)
    engine = make_engine(model, "tree", rule, max_batch=batch)
    distribution = torch.zeros(vocabulary, vocabulary, dtype=torch.float64)
    first = model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
    for x in range(vocabulary):
        distribution[x] = first[x] * model(torch.tensor([[*prompt, x]])).logits[0, -1].double().softmax(-1)
    requests = {str(i): (prompt, SamplingParams(1.0, max_tokens=2, seed=i)) for i in range(count)}
    seen = torch.zeros_like(distribution)
    for a, b in finish(engine, requests).values():
        seen[a, b] += 1
    expected = (distribution * count).flatten()
    keep = expected >= 5
    chi = float(((seen.flatten() - expected) ** 2 / expected)[keep].sum())
    freedom = int(keep.sum()) - 1
    # Wilson-Hilferty: chi-square with k degrees of freedom is below this with probability 0.99.
    assert chi < freedom * (1 - 2 / (9 * freedom) + 2.326 * (2 / (9 * freedom)) ** 0.5) ** 3


def test_speculation_saves_passes_and_counts_them() -> None:
    model = tiny_llama()
    engine = make_engine(model, "tree")
    engine.add_request("a", [1, 2, 3], SamplingParams(max_tokens=60))
    last = None
    while engine.busy:
        for delta in engine.step():
            last = delta.stats
    assert last is not None
    assert last.tokens == 60
    assert 1.3 < last.tokens_per_call <= TREE.height + 1
    # A pass emits its accepted nodes and one token more; max_tokens may cut the last pass.
    assert 0 <= last.calls + sum(last.accepted) - 60 <= TREE.height
    assert sorted(last.accepted, reverse=True) == last.accepted
    assert last.drafted == last.calls * TREE.nodes


def test_a_coin_in_place_of_the_target_keeps_its_odds_and_says_what_it_is() -> None:
    engine = make_engine(tiny_llama(), "tree", max_batch=8)
    engine.speculation = Speculation(Tree.chain(3), simulated_accept=0.7)
    for i in range(8):
        engine.add_request(str(i), [1, 2, i], SamplingParams(max_tokens=120, seed=i))
    stats = []
    while engine.busy:
        stats += [delta.stats for delta in engine.step() if delta.stats]
    assert all(s.simulated for s in stats)
    calls = sum(s.calls for s in stats)
    for depth in range(3):  # 0.7, 0.49, 0.343 of the calls, within four deviations
        share = sum(s.accepted[depth] for s in stats) / calls
        expected = 0.7 ** (depth + 1)
        assert abs(share - expected) < 4 * (expected * (1 - expected) / calls) ** 0.5
    with pytest.raises(UsageError, match="for timing, not for serving"):
        Service(engine)
    with pytest.raises(UsageError, match="a probability from 0 to 1"):
        Speculation(simulated_accept=1.5)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "prompt is empty"), ([1, 99], "token 99 is not in the vocabulary of 23"), ([1] * 300, "at most 199 can be")],
)
def test_a_bad_request_is_refused_and_the_engine_goes_on(prompt: list[int], message: str) -> None:
    model = tiny_llama()
    engine = make_engine(model, "ngram")
    with pytest.raises(UsageError, match=message):
        engine.add_request("bad", prompt, GREEDY)
    engine.add_request("a", [1], GREEDY)
    with pytest.raises(UsageError, match="this name is in use"):
        engine.add_request("a", [1], GREEDY)
    while engine.busy:
        engine.step()
    assert finish(engine, {"a": ([4, 5], GREEDY)})["a"] == alone(model, [4, 5], 14)


def test_an_answer_ends_at_the_context_and_not_behind_it() -> None:
    engine = make_engine(tiny_llama(context=40), "tree")
    found = finish(engine, {"a": ([1] * 30, SamplingParams(max_tokens=100))})
    assert len(found["a"]) == 10


def test_logprobs_are_those_of_the_model() -> None:
    model = tiny_llama()
    engine = make_engine(model, "tree")
    engine.add_request("a", [1, 2], SamplingParams(max_tokens=12, logprobs=3))
    entries, ids = [], []
    while engine.busy:
        for delta in engine.step():
            entries += delta.logprobs
            ids += delta.token_ids
    distribution = model(torch.tensor([[1, 2, *ids]])).logits[0].log_softmax(-1)
    for i, (token, entry) in enumerate(zip(ids, entries, strict=True)):
        assert entry.token == token == entry.top[0][0]
        assert entry.logprob == pytest.approx(float(distribution[1 + i, token]), abs=1e-4)
        assert len(entry.top) == 3
    assert Tree.chain(0).nodes == 0

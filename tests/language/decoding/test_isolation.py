"""Whatever fails in one request's part of a step ends that request; ten neighbours have the tokens they have without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gguf_files import bytes_tokenizer
from language.engine_models import tiny_llama
from tenfold.errors import UsageError
from tenfold.language.decoding import runner as runner_module
from tenfold.language.decoding import step as step_module
from tenfold.language.decoding.engine import LLM, LLMEngine
from tenfold.language.decoding.grammar import Grammars, GrammarState
from tenfold.language.decoding.request import Delta
from tenfold.language.drafting.ngram import NgramDrafter
from tenfold.language.drafting.speculation import Speculation
from tenfold.language.drafting.tree import Tree
from tenfold.language.models.tokenizer import Stream
from tenfold.language.sampling.sampling import SamplingParams

TOKENIZER = bytes_tokenizer()
VOCABULARY = TOKENIZER.size
MARK = 77  # a token that only the prompt of the one that fails has


class Fault(Exception):
    pass


class FailingGrammar:
    """A grammar whose matchers fail where they are told to."""

    def __init__(self, where: str) -> None:
        self.where = where

    def matcher(self) -> GrammarState:
        return FailingState(self.where)


class FailingState(GrammarState):
    def __init__(self, where: str) -> None:
        self.where = where

    @property
    def complete(self) -> bool:
        return False

    def forced(self) -> list[int]:
        return self._at("forced", [])

    def allowed(self, tree: Tree, tokens: torch.Tensor) -> torch.Tensor:
        return self._at("allowed", torch.ones(tree.nodes + 1, VOCABULARY, dtype=torch.bool))

    def advance(self, token: int) -> None:
        self._at("advance", None)

    def _at(self, where: str, value: Any) -> Any:
        if where == self.where:
            raise Fault(where)
        return value


def engine() -> LLMEngine:
    plan = Speculation(planner=lambda n, s: (Tree.chain(3), "top_k"))
    return LLMEngine(
        tiny_llama(VOCABULARY), TOKENIZER, NgramDrafter(), speculation=plan, max_batch=11, page_size=4, chunk=8
    )


def run(bad: SamplingParams | None) -> dict[str, list[Delta]]:
    made = engine()
    found: dict[str, list[Delta]] = {}
    for i in range(10):
        params = SamplingParams(i % 2 * 1.0, max_tokens=9, seed=i, logprobs=1, ignore_eos=True, presence_penalty=0.5)
        made.add_request(str(i), [i + 1, 7, 8, 7, 8, 7], params)
        if i == 4 and bad is not None:
            made.add_request("bad", [MARK, 7, 8, 7, 8, 7], bad)
    while made.busy:
        for delta in made.step():
            found.setdefault(delta.request_id, []).append(delta)
    assert made.runner.pages.free == made.runner.pages.count
    return found


def tokens(found: dict[str, list[Delta]]) -> dict[str, list[int]]:
    return {name: [t for d in deltas for t in d.token_ids] for name, deltas in found.items() if name != "bad"}


def failing(module: Any, name: str, when: Callable[..., bool], patch: pytest.MonkeyPatch) -> None:
    real = getattr(module, name)

    def replaced(*words: Any, **named: Any) -> Any:
        if when(*words, **named):
            raise Fault(name)
        return real(*words, **named)

    patch.setattr(module, name, replaced)


PENALISED, HOT, LOGPROBS = SamplingParams(repetition_penalty=1.5), SamplingParams(0.625), SamplingParams(logprobs=3)
STAGES: dict[str, tuple[SamplingParams, Callable[[pytest.MonkeyPatch], None]]] = {
    "penalties": (
        PENALISED,
        lambda p: failing(step_module, "penalise", lambda x, s, *_: s.repetition_penalty == 1.5, p),
    ),
    "sampling": (HOT, lambda p: failing(step_module, "verify_sampled", lambda x, s, *_: 0.625 in s.temperature, p)),
    "log-probabilities": (LOGPROBS, lambda p: failing(runner_module, "_logprobs_of", lambda n, *_: n == 3, p)),
    "drafting": (
        SamplingParams(),
        lambda p: failing(NgramDrafter, "draft", lambda _, states, *__: any(s.tokens[0] == MARK for s in states), p),
    ),
    "prefill": (
        SamplingParams(),
        lambda p: failing(runner_module.Passes, "__call__", lambda _, ids, *__: MARK in ids, p),
    ),
    **{
        f"grammar, {where}": (SamplingParams(grammar=FailingGrammar(where)), lambda p: None)
        for where in ("allowed", "advance")
    },
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_failure_in_one_requests_part_ends_it_alone(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tokens(run(None))
    params, inject = STAGES[stage]
    inject(monkeypatch)
    found = run(params)
    assert tokens(found) == expected
    last = found["bad"][-1]
    assert last.finish_reason == "error"
    assert isinstance(last.error, Fault)
    assert all(
        deltas[-1].finish_reason == "length" and deltas[-1].error is None for n, deltas in found.items() if n != "bad"
    )


def test_a_failure_while_detokenising_ends_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tokens(run(None))
    first: list[Stream] = []
    real = Stream.add

    def add(self: Stream, *ids: int) -> str:
        if not first and ids:
            first.append(self)
        if self is first[0]:
            raise Fault
        return real(self, *ids)

    monkeypatch.setattr(Stream, "add", add)
    made = engine()
    made.add_request("bad", [MARK, 7], SamplingParams(max_tokens=4))
    deltas = [d for _ in range(3) for d in made.step()]
    assert [(d.request_id, d.finish_reason) for d in deltas] == [("bad", "error")]
    first[:] = [Stream(TOKENIZER)]
    assert tokens(run(None)) == expected


def test_what_a_grammar_forces_is_a_proposal_and_no_reason_to_fail() -> None:
    found = run(SamplingParams(max_tokens=5, grammar=FailingGrammar("forced")))
    assert found["bad"][-1].finish_reason == "length"


def test_a_dead_end_ends_its_own_answer_with_the_reason() -> None:
    grammars = Grammars(TOKENIZER, VOCABULARY)
    expected = tokens(run(None))
    for grammar, text in ((grammars.regex("ab[^\\s\\S]"), "ab"), (grammars.ebnf('root ::= "a" b\nb ::= b "c"'), "a")):
        for heat in (0.0, 1.0):
            found = run(SamplingParams(heat, max_tokens=6, seed=1, grammar=grammar, ignore_eos=True))
            assert tokens(found) == expected
            last = found["bad"][-1]
            assert "".join(d.text for d in found["bad"]) == text
            assert last.finish_reason == "error"
            assert isinstance(last.error, UsageError)
            assert "dead end" in str(last.error)


def test_pages_that_only_a_tree_needed_are_given_back_after_a_step() -> None:
    made = engine()
    made.add_request("a", [1, 7, 8, 7, 8, 7], SamplingParams(max_tokens=30, ignore_eos=True))
    while made.busy:
        made.step()
        for request in made.scheduler.running:
            assert request.table is not None
            assert len(request.table.pages) == -(-request.rows // 4)


def test_drafts_are_counted_where_there_was_a_draft() -> None:
    found = run(None)
    stats = [deltas[-1].stats for deltas in found.values()]
    assert all(s is not None and s.drafts <= s.calls for s in stats)
    assert any(s is not None and 0 < s.drafts < s.calls for s in stats)
    assert all(s is not None and (s.drafts > 0) == (s.drafted > 0) for s in stats)


def test_offline_answers_say_which_one_failed() -> None:
    llm = object.__new__(LLM)
    llm.engine, llm.tokenizer = engine(), TOKENIZER
    bad = SamplingParams(max_tokens=3, grammar=FailingGrammar("advance"))
    good, failed = llm.generate([[1, 7], [2, 7]], [SamplingParams(max_tokens=3, ignore_eos=True), bad])
    assert (len(good.token_ids), good.error) == (3, None)
    assert (failed.finish_reason, failed.token_ids, str(failed.error)) == ("error", [], "advance")

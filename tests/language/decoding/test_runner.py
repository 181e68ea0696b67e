"""The runner: a prefill in chunks leaves the rows of a whole one, and a decoding step keeps the rows of what it emitted."""

from __future__ import annotations

import pytest
import torch

from language.engine_models import TREE, NoisyTarget, alone, tiny_llama
from tenfold.language.decoding.request import Request
from tenfold.language.decoding.runner import Runner
from tenfold.language.drafting.tree import Tree
from tenfold.language.sampling.sampling import SamplingParams

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


def started(runner: Runner, prompt: list[int], **params: object) -> Request:
    made = SamplingParams(**{"max_tokens": 30, **params})  # type: ignore[arg-type]
    request = Request("a", prompt, made, seed=0, tokenizer=None, stops=frozenset())
    runner.start(request)
    assert request.table is not None
    assert runner.pages.cover(request.table, len(prompt) + 40)
    return request


def rows(runner: Runner, request: Request) -> torch.Tensor:
    assert request.table is not None
    return torch.stack(runner.cache.load(request.table.slots(0, request.rows)))


@pytest.mark.parametrize("cuts", [[9], [4, 5], [1, 1, 7], [3, 3, 3]])
def test_a_prefill_in_chunks_leaves_the_rows_of_a_whole_one(cuts: list[int]) -> None:
    runner = Runner(tiny_llama(), None, 60, 4)
    whole, parts = started(runner, PROMPT), started(runner, PROMPT)
    runner.prefill([(whole, 9)])
    for count in cuts:
        runner.prefill([(parts, count)])
    assert parts.ready
    torch.testing.assert_close(rows(runner, parts), rows(runner, whole), rtol=1e-4, atol=1e-5)


def test_steps_emit_the_greedy_text_and_keep_its_rows() -> None:
    model = tiny_llama()
    runner = Runner(model, NoisyTarget(model, 0.4), 60, 4)
    own = started(runner, PROMPT)
    runner.prefill([(own, 9)])
    longest = 0
    for _ in range(6):
        assert own.table is not None
        assert runner.pages.cover(
            own.table, len(own.tokens) + TREE.nodes
        )  # tail pages were given back after the step before
        step = runner.decode([own], TREE, "top_k")
        assert len(step.paths[0]) == len(step.emitted[0])
        longest = max(longest, len(step.emitted[0]))
        own.take(step.emitted[0], [])
        runner.commit(step, [0])
        assert own.ready
    text = own.tokens[len(PROMPT) :]
    assert longest > 1  # some draft tokens were accepted
    assert text == alone(model, PROMPT, len(text))
    fresh = started(runner, list(own.tokens))
    runner.prefill([(fresh, len(own.tokens) - 1)])
    torch.testing.assert_close(rows(runner, own), rows(runner, fresh), rtol=1e-4, atol=1e-4)


def test_what_a_request_that_ends_has_drafted_is_dropped() -> None:
    model = tiny_llama()
    runner = Runner(model, None, 60, 4)
    own = started(runner, PROMPT, logprobs=2)
    runner.prefill([(own, 9)])
    step = runner.decode([own], Tree.chain(0), "top_k")
    expected = model(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
    assert step.logprobs[0][0].logprob == pytest.approx(float(expected.max()), abs=1e-4)
    assert [token for token, _ in step.logprobs[0][0].top] == expected.topk(2).indices.tolist()
    runner.commit(step, [])
    assert own.rows == 9
    runner.stop(own)
    assert runner.pages.free == runner.pages.count

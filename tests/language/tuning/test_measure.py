"""Acceptance of a drafter: what lookup accepts, tokens per call by shape, and that the engine's text stays the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from language.drafting_models import AUX, tiny_drafter, tiny_target
from language.engine_models import alone
from tenfold.export.weights import Weights
from tenfold.language.decoding.engine import Result
from tenfold.language.decoding.request import Stats
from tenfold.language.distillation.rollouts import Rollout
from tenfold.language.drafting.hybrid_trees import HybridTree
from tenfold.language.drafting.tree import Tree
from tenfold.language.models.prepare import Target
from tenfold.language.tuning.measure import Replayed, engine_tpc, figures, look_up_lengths, replay, write_greedily


def rollout(tokens: list[int], prompt: int) -> Rollout:
    return Rollout(torch.tensor(tokens), prompt, torch.zeros(len(tokens), 2), torch.zeros(len(tokens)).long())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=25), st.integers(1, 5), st.data())
def test_lookup_accepts_the_tokens_that_followed_the_latest_longest_match(
    tokens: list[int], chain: int, data: st.DataObject
) -> None:
    prompt = data.draw(st.integers(1, len(tokens) - 1))
    lengths = look_up_lengths(rollout(tokens, prompt), chain).tolist()
    assert len(lengths) == len(tokens) - prompt + 1
    for start, length in enumerate(lengths):
        text, rest = tokens[: prompt + start], tokens[prompt + start :]
        found: list[int] = []
        for n in range(min(3, len(text) - 1), 0, -1):
            ends = [end for end in range(n, len(text)) if text[end - n : end] == text[-n:]]
            if ends:
                found = text[ends[-1] :][:chain]
                break
        assert length == next((i for i, (a, b) in enumerate(zip(found, rest)) if a != b), min(len(found), len(rest)))


def replayed() -> Replayed:
    """Two answers of which one repeats itself; the drafter is right at every second place."""
    answers = [rollout([1, *range(2, 34)], 1), rollout([1, 2] * 20, 1)]
    ranks = [torch.arange(a.length + 1)[:, None].expand(-1, 3) % 2 * 9 for a in answers]
    return Replayed(answers, ranks, [torch.zeros(a.length + 1, dtype=torch.int64) for a in answers])


def test_answers_that_repeat_themselves_are_left_out_unless_named() -> None:
    own = replayed()
    assert own.kept == [0]
    assert own.tpc(Tree.chain(0)) == 1
    # Every start at an even place accepts all three: 4 tokens a call, and the next start is even again.
    assert own.tpc(Tree.chain(3)) == 4
    assert own.tpc(Tree.chain(3), [1]) == pytest.approx(39 / 10)
    assert own.by_depth(Tree.chain(3)) == [1, 1, 1]
    assert own.tpc(HybridTree.of(Tree.chain(1), 2)) == own.tpc(Tree.chain(1))
    assert own.look_up_tpc(4) == 1


def test_greedy_answers_are_replayed_and_every_shape_stands_beside_the_baselines() -> None:
    model = tiny_target()
    target = Target(model, "fp32", Weights(model.config, model.state_dict()))
    drafter = tiny_drafter(model)
    prompts = [[7, 1], [1, 2, 3], [4, 5, 6, 7]]
    answers = write_greedily(target, prompts, frozenset(), aux=AUX, max_tokens=16)
    assert [a.tokens[a.prompt :].tolist() for a in answers] == [alone(model, prompt, 16) for prompt in prompts]
    own = replay(drafter, target, answers)
    found = figures(drafter, own)
    assert found["TPC no drafter (baseline)"] == 1
    assert 1 <= found["TPC chain 4, all answers"] <= found["TPC tree 16, all answers"] <= 7
    assert 0 < found["draft vocabulary covers"] <= 1
    right = Replayed(answers, [torch.zeros_like(ranks) for ranks in own.ranks], own.looked_up)
    assert figures(drafter, right)["TPC chain 4, all answers"] == 16 / 4  # 5, 5, 5 and one token


def test_the_prompt_s_pass_is_no_call_of_the_engine_s_tpc() -> None:
    results = [Result("", [1] * n, "length", Stats(tokens=n, calls=calls), []) for n, calls in ((6, 2), (4, 3))]
    assert engine_tpc(results) == 2
    assert engine_tpc([]) == 0

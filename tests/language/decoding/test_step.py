"""A decoding step emits the accepted draft tokens and the bonus token, with the same random numbers on host and device."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tenfold.language.decoding.request import Request
from tenfold.language.decoding.step import (
    DeviceNumbers,
    HostNumbers,
    Numbers,
    Outcome,
    decoding_step,
    hooks_of,
    record,
)
from tenfold.language.drafting.protocol import Draft, DraftTrees
from tenfold.language.drafting.tree import Tree
from tenfold.language.models.llama import Output
from tenfold.language.sampling.sampling import SamplingParams, SamplingTensors

TREE = Tree.from_paths([[0], [1], [0, 0], [0, 1], [1, 0]])
V = 7


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1 << 62), st.integers(1, 5000)), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_host_and_device_draw_the_same_numbers(keys: list[tuple[int, int]], siblings: int, levels: int) -> None:
    seeds, lengths = [seed for seed, _ in keys], [length for _, length in keys]
    host: Numbers = HostNumbers(seeds, lengths)
    device: Numbers = DeviceNumbers(torch.tensor(seeds), torch.tensor(lengths))
    slots = torch.arange(3)
    assert torch.equal(host.draft(slots, 5), device.draft(slots, 5))
    assert torch.equal(host.accept(siblings, levels), device.accept(siblings, levels))
    assert torch.equal(host.coins(levels), device.coins(levels))


def step(logits: Tensor, tokens: Tensor, hooks: list | None = None, simulated: float | None = None) -> Outcome:
    batch = len(tokens)

    def forward(nodes: Tensor, trees: DraftTrees) -> tuple[Output, Tensor]:
        assert nodes.shape == (batch, trees.nodes + 1)
        return Output(logits, None, logits), logits

    return decoding_step(
        torch.zeros(batch, dtype=torch.int64),
        lambda: (Draft(tokens), TREE),
        forward,
        sampling=SamplingTensors.of([SamplingParams()] * batch),
        rule="top_k",
        numbers=HostNumbers([0] * batch, [5] * batch),
        hooks=hooks or [],
        simulated=simulated,
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_greedy_steps_emit_the_argmax_of_every_node_that_they_pass(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, TREE.nodes + 1, V, generator=g)
    tokens = torch.randint(-1, 3, (2, TREE.nodes), generator=g)
    found = step(logits, tokens)
    for b in range(2):
        length = int(found.accepted.length[b])
        path, emitted = found.path[b].tolist(), found.tokens[b].tolist()
        best = logits[b].argmax(-1).tolist()
        assert emitted[: length + 1] == [best[node] for node in path[: length + 1]]
        assert path[0] == 0
        for parent, node in pairwise(path[: length + 1]):
            assert TREE.parents[node] == parent
            assert int(tokens[b, node - 1]) == best[parent]
        # The walk ends only where no child holds the argmax, or a proposal is missing.
        assert not any(
            int(tokens[b, c - 1]) == best[path[length]] for c in TREE.children[path[length]].tolist() if c > 0
        )
        assert emitted[length + 1 :] == [0] * (len(emitted) - length - 1)
    assert found.drafted.tolist() == (tokens >= 0).sum(1).tolist()


def test_hooks_change_what_is_verified_and_not_what_is_handed_on() -> None:
    logits = torch.zeros(1, TREE.nodes + 1, V)
    logits[..., 3] = 1
    tokens = torch.full((1, TREE.nodes), 4)
    assert step(logits, tokens).tokens[0].tolist()[:1] == [3]
    found = step(logits, tokens, [lambda found, draft, trees: found.index_fill(-1, torch.tensor([3]), -torch.inf)])
    assert 3 not in found.tokens[0].tolist()
    assert torch.equal(found.logits, logits)


def test_a_coin_that_always_falls_the_same_way_accepts_all_or_nothing() -> None:
    logits, tokens = torch.randn(1, TREE.nodes + 1, V), torch.full((1, TREE.nodes), 2)
    assert int(step(logits, tokens, simulated=1.0).accepted.length) == TREE.height
    assert int(step(logits, tokens, simulated=0.0).accepted.length) == 0


def test_only_requests_with_penalties_or_grammars_need_hooks() -> None:
    plain, penalised = (
        Request("a", [1, 2], SamplingParams(presence_penalty=penalty), seed=0, tokenizer=None, stops=frozenset())
        for penalty in (0.0, 2.0)
    )
    assert hooks_of([plain], V) == []
    (hook,) = hooks_of([plain, penalised], V)
    penalised.tokens.append(5)
    logits = torch.zeros(2, TREE.nodes + 1, V)
    found = hook(logits, Draft(torch.full((2, TREE.nodes), -1)), TREE)
    assert torch.equal(found[0], logits[0])
    assert found[1, 0].tolist() == [0, 0, 0, 0, 0, -2, 0]
    record(plain, 1, 3, 2, simulated=True)
    record(plain, 0, 3, 2, simulated=False)
    assert (plain.stats.calls, plain.stats.accepted, plain.stats.simulated) == (2, [1, 0], True)

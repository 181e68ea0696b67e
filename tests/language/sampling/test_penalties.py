"""Penalties count what plain decoding would have counted, at every node of a tree."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from language.engine_models import finish, make_engine, tiny_llama
from tenfold.config import FieldError
from tenfold.language.drafting.tree import Tree
from tenfold.language.sampling.penalties import penalise
from tenfold.language.sampling.sampling import SamplingParams, SamplingTensors, allow, token_probabilities

CHOICES = [
    {"repetition_penalty": 1.6},
    {"frequency_penalty": 0.9},
    {"presence_penalty": -1.5},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.8},
]


def plainly(logits: Tensor, params: SamplingParams, prompt: list[int], answer: list[int]) -> Tensor:
    """Token by token."""
    out = logits.clone()
    for token in range(len(out)):
        if token in prompt or token in answer:
            out[token] = (
                out[token] / params.repetition_penalty if out[token] > 0 else out[token] * params.repetition_penalty
            )
        out[token] -= params.frequency_penalty * answer.count(token) + params.presence_penalty * (token in answer)
    return out


@pytest.mark.parametrize("choice", CHOICES)
def test_every_node_counts_the_text_and_its_own_path(choice: dict[str, float]) -> None:
    torch.manual_seed(0)
    params = SamplingParams(**choice)  # type: ignore[arg-type]
    tree = Tree.from_paths([[0], [1], [0, 0], [0, 1], [1, 0], [0, 0, 0]])
    for _ in range(20):
        text, prompt = torch.randint(9, (8,)).tolist(), int(torch.randint(1, 8, ()))
        tokens = torch.randint(-1, 9, (tree.nodes,))
        logits = torch.randn(tree.nodes + 1, 9)
        found = penalise(logits, params, text, prompt, tokens, tree.mask)
        for node in range(tree.nodes + 1):
            path = [int(tokens[n - 1]) for n in tree.ancestors[node].tolist() if n > 0]
            if -1 in path:
                continue  # never reached
            expected = plainly(logits[node], params, text[:prompt], [*text[prompt:], *path])
            assert torch.allclose(found[node], expected, atol=1e-6)


def test_repetition_is_that_of_transformers() -> None:
    torch.manual_seed(1)
    text, logits = torch.randint(9, (6,)).tolist(), torch.randn(1, 9)
    theirs = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.4)])(torch.tensor([text]), logits.clone())
    ours = penalise(logits, SamplingParams(repetition_penalty=1.4), text, 3, torch.empty(0, dtype=torch.int64), TREE0)
    assert torch.allclose(ours, theirs)


TREE0 = Tree.chain(0).mask


@pytest.mark.parametrize("kind", ["ngram", "chain", "tree", "hybrid"])
@pytest.mark.parametrize("choice", CHOICES)
def test_greedy_text_with_penalties_is_the_same_with_any_draft(kind: str, choice: dict[str, float]) -> None:
    target = tiny_llama()
    torch.manual_seed(2)
    prompts = [torch.randint(23, (n,)).tolist() for n in (2, 9)]
    asked = {str(i): (p, SamplingParams(max_tokens=20, **choice)) for i, p in enumerate(prompts)}  # type: ignore[arg-type]
    asked["plain"] = (prompts[0], SamplingParams(max_tokens=20))
    make: Callable = make_engine
    alone = finish(make(target, "none"), asked)
    assert finish(make(target, kind), asked) == alone
    assert alone["0"] != alone["plain"]


def test_a_penalty_out_of_range_says_what_is_allowed() -> None:
    with pytest.raises(FieldError, match="repetition_penalty"):
        SamplingParams(repetition_penalty=0)
    with pytest.raises(FieldError, match="-2 to 2"):
        SamplingParams(presence_penalty=3)


@pytest.mark.parametrize(
    "extreme",
    [
        {"repetition_penalty": 1e-150},
        {"temperature": 2e-5},
        {"temperature": 1e-42},
        {"temperature": 1e-300, "top_k": 3},
        {"top_p": 1e-60},
        {"top_k": (1 << 63) - 1},
    ],
)
def test_extreme_numbers_leave_a_law_that_a_grammar_can_rely_on(extreme: dict) -> None:
    """No infinity becomes NaN: what is forbidden stays at 0, and the rest is a distribution."""
    params = SamplingParams(**{"temperature": 0.8, "top_p": 0.7, "presence_penalty": 0.5, **extreme})
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)) * 20
    alone = torch.ones(1, 1, dtype=torch.bool)
    none = torch.empty(0, dtype=torch.int64)
    rows = torch.cat([penalise(row[None], params, [1, 2, 3, 3], 1, none, alone) for row in logits])
    allowed = torch.arange(9)[None] > 4
    p = token_probabilities(allow(rows, allowed.expand(4, -1)), SamplingTensors.of([params] * 4))
    assert torch.allclose(p.sum(-1), torch.ones(4))
    assert bool((p[:, :5] == 0).all())

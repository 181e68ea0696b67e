"""Sampling parameters name themselves when out of range, and the distribution of a token is that of a plain reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from language.sampling_reference import CUTS, reference
from tenfold.errors import UsageError
from tenfold.language.sampling.sampling import (
    SamplingParams,
    SamplingTensors,
    allow,
    draw,
    heated,
    token_probabilities,
)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=12),
    st.floats(0.05, 5),
    st.integers(0, 12),
    st.floats(0.05, 1),
)
def test_what_is_left_sums_to_one_and_keeps_the_likeliest(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    row = torch.tensor(logits)
    p = token_probabilities(row[None], SamplingTensors.of([params]))[0]
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    assert p[row.argmax()] == p.max()
    kept = int((p > 0).sum())
    assert top_k == 0 or kept <= max(
        top_k, int((row >= row.sort(descending=True).values[min(top_k, len(row)) - 1]).sum())
    )


def test_a_temperature_too_small_for_fp32_is_greedy() -> None:
    assert SamplingParams(temperature=1e-300).temperature == 0
    assert SamplingTensors.of([SamplingParams(temperature=9e-6)] * 2).greedy
    assert not SamplingTensors.of([SamplingParams(), SamplingParams(temperature=0.1)]).greedy
    cold = heated(torch.tensor([[3e38, 0.0, -3e38]]), torch.tensor([[1e-5]]))
    assert cold.tolist() == [[1, 0, 0]]


def test_a_grammar_takes_tokens_out_and_a_row_without_any_stays_masked() -> None:
    allowed = torch.tensor([[True, False, True], [False, False, False]])
    found = allow(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), allowed)
    assert found.tolist() == [[1, -torch.inf, 3], [-torch.inf] * 3]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(any), st.floats(0, 1, exclude_max=True))
def test_a_draw_is_where_the_cumulative_sum_passes_the_number(weights: list[float], u: float) -> None:
    p = torch.tensor(weights, dtype=torch.float64)
    found = int(draw(p[None], torch.tensor([u], dtype=torch.float64)))
    total = p.cumsum(0)
    assert p[found] > 0
    assert float(total[found]) >= u * float(total[-1])
    assert found == 0 or float(total[found - 1]) <= u * float(total[-1])


def test_laws_of_a_mixed_batch_are_those_of_each_alone() -> None:
    torch.manual_seed(0)
    logits = torch.randn(len(CUTS) + 1, 40)
    params = [*CUTS.values(), SamplingParams()]
    together = token_probabilities(logits, SamplingTensors.of(params))
    for row, one, p in zip(logits, params, together):
        assert torch.allclose(token_probabilities(row[None], SamplingTensors.of([one]))[0], p)
        if one.temperature:
            assert torch.allclose(p.double(), reference(row, one), atol=1e-6)
    assert together[-1].tolist() == [float(i == logits[-1].argmax()) for i in range(40)]


def test_a_nucleus_wider_than_the_first_look_is_still_exact() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3000) * 0.1
    found = token_probabilities(logits, SamplingTensors.of([SamplingParams(temperature=1.0, top_p=0.9)] * 2))
    assert torch.allclose(
        found[0].double(), reference(logits[0], SamplingParams(temperature=1.0, top_p=0.9)), atol=1e-6
    )


def test_a_draw_never_gives_what_has_no_probability() -> None:
    p = torch.tensor([[0.0, 0.5, 0.5, 0.0]])
    for u in (0.0, 1e-17, 0.49999, 0.5, 1 - 1e-16):
        assert p[0, draw(p, torch.tensor([u], dtype=torch.float64))] > 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("top_p", 0.0),
        ("top_k", -1),
        ("max_tokens", 0),
        ("seed", -1),
        ("stop", ("",)),
        ("logprobs", 99),
    ],
)
def test_a_sampling_parameter_out_of_range_names_itself(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=field):
        SamplingParams(**{field: value})

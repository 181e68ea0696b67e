"""2:4 selection against brute force over all pairs; gradients against autograd of what the text says they are."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tenfold.errors import FieldError
from tenfold.nn.sparse24 import (
    Sparsity24,
    backends,
    dropped_mass,
    quantize_rows,
    rounded_fp8,
    select24,
    select_tokens,
    sparse24_ffn,
    whole_features,
)

VALUES = [0.0, -0.0, 1.0, 1.0, -1.0, 2.5, -3.0, math.inf, -math.inf, math.nan]


def best_pair(group: list[float]) -> tuple[int, ...]:
    """Over all pairs: the one whose members beat all others, lower indices first among equals."""

    def beats(i: int, j: int) -> bool:
        a, b = group[i], group[j]
        if math.isnan(a) or math.isnan(b):
            return math.isnan(a) and (not math.isnan(b) or i < j)
        return a > b or (a == b and i < j)

    fits = [
        pair
        for pair in itertools.combinations(range(4), 2)
        if all(beats(i, j) for i in pair for j in range(4) if j not in pair)
    ]
    assert len(fits) == 1
    return fits[0]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(VALUES) | st.floats(-4, 4, width=32), min_size=4, max_size=4))
def test_selection_equals_brute_force_over_all_six_pairs(group: list[float]) -> None:
    mask = select24(torch.tensor(group))
    assert tuple(mask.nonzero()[:, 0].tolist()) == best_pair(group)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 23), st.integers(1, 3), st.booleans(), st.integers(0, 2**31))
def test_no_group_keeps_more_than_two_whatever_the_length_and_dimension(
    length: int, others: int, first: bool, seed: int
) -> None:
    y = torch.randn(length, others, generator=torch.Generator().manual_seed(seed))
    mask = select24(y, 0) if first else select24(y.t().contiguous(), 1).t()
    assert mask.shape == y.shape
    for start in range(0, length, 4):
        assert (mask[start : start + 4].sum(0) == min(2, length - start)).all()
    assert mask.equal(select24(y, 0))


def masked_forward(x: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    y1 = x @ w_up.t()
    return (y1.relu().square() * select24(y1.detach())) @ w_down.t()


def problem(tokens: int, d: int, h: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((tokens, d), (h, d), (d, h), (tokens, d))
    x, up, down, weight = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return x.requires_grad_(), up.requires_grad_(), down.requires_grad_(), weight


def gradients(y: Tensor, weight: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((y * weight).sum(), leaves)


def test_every_gradient_equals_dense_autograd_where_rows_are_two_of_four_both_ways() -> None:
    """Hidden values positive at two features of four and two tokens of four: nothing is dropped anywhere."""
    tokens, h = 16, 24
    _, _, down, weight = problem(tokens, tokens, h)
    pattern = (torch.arange(tokens)[:, None] % 4 // 2) == (torch.arange(h)[None] % 4 // 2)
    y1 = torch.where(pattern, 1.0, -1.0).double() * (1 + torch.rand(tokens, h, dtype=torch.float64))
    x = torch.eye(tokens, dtype=torch.float64, requires_grad=True)
    up = y1.t().contiguous().requires_grad_()
    config = Sparsity24(dense_fraction=0.0, permute_tokens=False)
    ours = gradients(sparse24_ffn(x, up, down, config), weight, x, up, down)
    dense = gradients((x @ up.t()).relu().square() @ down.t(), weight, x, up, down)
    assert (select_tokens(y1.relu(), config) == pattern)[pattern].all()
    for a, b in zip(ours, dense):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("tokens", "h"), [(32, 32), (30, 44), (1, 20), (7, 18)])
@pytest.mark.parametrize("permute", [True, False])
def test_dx_is_exact_and_weight_gradients_are_those_of_the_masked_dense_products(
    tokens: int, h: int, permute: bool
) -> None:
    x, up, down, weight = problem(tokens, 12, h)
    config = Sparsity24(permute_tokens=permute)
    y = sparse24_ffn(x, up, down, config)
    reference = masked_forward(x, up, down)
    torch.testing.assert_close(y, reference, rtol=1e-12, atol=1e-12)
    dx, dup, ddown = gradients(y, weight, x, up, down)
    exact, *exact_weights = gradients(reference, weight, x, up, down)
    torch.testing.assert_close(dx, exact, rtol=1e-10, atol=1e-10)
    # The weight gradients, token group by token group, with x permuted at entry and the upstream gradient likewise.
    with torch.no_grad():
        order = torch.randperm(tokens, generator=torch.Generator().manual_seed(tokens)) if permute else slice(None)
        xp, gp = x[order], weight[order]
        y1 = xp @ up.t()
        r = y1.relu() * select24(y1)
        keep = select24(r, 0)
        keep[:, whole_features(r, 0.05)] = True
        d_y1 = 2 * (gp @ down) * r
        torch.testing.assert_close(dup, (d_y1 * keep).t() @ xp, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ddown, gp.t() @ (r.square() * keep), rtol=1e-10, atol=1e-10)
    # Without the sparse backward both are exact.
    exactly = gradients(sparse24_ffn(x, up, down, Sparsity24(backward=False)), weight, up, down)
    for a, b in zip(exactly, exact_weights):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_features_that_fire_most_are_kept_whole() -> None:
    r = torch.zeros(8, 64)
    busy = torch.tensor([3, 10, 17, 40])
    r[:, busy] = torch.rand(8, 4) + 0.1
    mask = select_tokens(r, Sparsity24(dense_fraction=0.05))
    assert mask[:, busy].all()
    assert int(whole_features(r, 0.05).sum()) == 16  # 3.2 of 64, rounded up
    assert int(whole_features(r, 0.0).sum()) == 0
    assert int(whole_features(r[:, :8], 0.9).sum()) == 8


def test_the_forward_mask_never_looks_at_another_token_and_a_nan_survives() -> None:
    x, up, down, _ = problem(12, 8, 20)
    config = Sparsity24()
    with torch.no_grad():
        before = sparse24_ffn(x, up, down, config)
        other = x.clone()
        other[7] = torch.randn(8, dtype=torch.float64)
        after = sparse24_ffn(other, up, down, config)
        rows = torch.arange(12) != 7
        assert before[rows].equal(after[rows])
        assert not before[7].equal(after[7])
        other[7] = math.nan
        broken = sparse24_ffn(other, up, down, config)
        assert broken[7].isnan().all()
        assert broken[rows].equal(before[rows])


def test_dropped_values_that_are_infinite_leave_no_nan() -> None:
    y1 = torch.tensor([[math.inf, math.inf, math.inf, 1.0]])
    y = sparse24_ffn(torch.eye(1), y1.t().contiguous(), torch.ones(1, 4), Sparsity24())
    assert y.item() == math.inf


def test_fp8_rounds_each_row_by_its_own_largest_value() -> None:
    x, up, down, _ = (t.detach().float() for t in problem(32, 16, 64))
    exact = sparse24_ffn(x, up, down, Sparsity24())
    rounded = sparse24_ffn(x, up, down, Sparsity24(dtype="fp8"))
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.05
    larger = x.clone()
    larger[5] *= 1e4
    rows = torch.arange(32) != 5
    assert sparse24_ffn(larger, up, down, Sparsity24(dtype="fp8"))[rows].equal(rounded[rows])
    codes, scale = quantize_rows(torch.tensor([[0.0, 0.0], [448.0, 1.0], [math.nan, 1.0]]))
    assert codes.float()[0].tolist() == [0, 0]
    assert scale[:2, 0].tolist() == [0, 1]
    assert rounded_fp8(torch.tensor([[math.nan, 1.0]])).isnan().all()


def test_more_mass_is_lost_among_tokens_that_fire_alike_than_after_permuting_them() -> None:
    """Tokens in runs of eight that share their active features, as neighbours in a text do."""
    generator = torch.Generator().manual_seed(1)
    topic = torch.randn(32, 1, 64, generator=generator).expand(32, 8, 64).reshape(256, 64)
    y1 = topic + 0.3 * torch.randn(256, 64, generator=generator) - 1.0
    lost = dropped_mass(y1, Sparsity24())
    assert lost["neighbours"] > 1.5 * lost["permuted"] > 1.5 * lost["permuted + whole"]
    assert 0 < lost["features"] < lost["neighbours"]
    assert lost["zeros"] == pytest.approx(float((y1 <= 0).float().mean()))


def test_a_field_out_of_range_is_named() -> None:
    with pytest.raises(FieldError, match=r"sparsity.warmup_steps = -1"):
        Sparsity24(warmup_steps=-1)
    with pytest.raises(FieldError, match=r"sparsity.dense_fraction = 1.5"):
        Sparsity24(dense_fraction=1.5)


def test_every_backend_is_listed_with_its_reason() -> None:
    listed = {b.name: b for b in backends()}
    assert listed["torch"].available
    assert all(b.available or b.refused_because for b in listed.values())
    if not torch.cuda.is_available():
        assert not listed["cusparselt"].available
        assert "CUDA" in listed["triton pack"].refused_because

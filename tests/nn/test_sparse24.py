"""2:4 sparsity: selection equals brute force, gradients are the named oracle's, and a number that is not finite is seen."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tenfold.errors import UsageError
from tenfold.nn.sparse24 import (
    Sparsity24,
    backends,
    dense_features,
    dropped_mass,
    quantize_rows,
    select24,
    sparse24_ffn,
    token_mask,
    token_order,
)

VALUES = [0.0, -0.0, 1.0, 1.0, 2.0, -1.0, -3.0, 0.5, math.inf, -math.inf, math.nan]
groups = st.lists(st.sampled_from(VALUES) | st.floats(width=32, allow_subnormal=False), min_size=4, max_size=4)


def rank(value: float, index: int) -> tuple[bool, float, int]:
    """Sorts as select24 promises: NaN above all, then the number, then the lower index."""
    return (math.isnan(value), 0.0 if math.isnan(value) else value, -index)


def best_pair(group: list[float]) -> set[int]:
    """Of all 6 pairs the one whose members rank highest."""
    order = {i: rank(v, i) for i, v in enumerate(group)}
    return set(max(itertools.combinations(range(4), 2), key=lambda p: sorted((order[i] for i in p), reverse=True)))


@settings(max_examples=300, deadline=None)
@given(st.lists(groups, min_size=1, max_size=5))
def test_selection_is_the_best_of_all_pairs(rows: list[list[float]]) -> None:
    mask = select24(torch.tensor(rows))
    assert [set(row.nonzero().flatten().tolist()) for row in mask] == [best_pair(row) for row in rows]


@pytest.mark.parametrize(("size", "dim"), [(5, 1), (6, 0), (7, -1), (1, 0), (12, 1)])
def test_any_length_along_any_axis_keeps_at_most_two_of_four(size: int, dim: int) -> None:
    y = torch.randn((3, size) if dim else (size, 3))
    mask = select24(y, dim)
    assert mask.shape == y.shape
    filled = F.pad(mask.movedim(dim, -1), (0, -size % 4))
    assert int(filled.unflatten(-1, (-1, 4)).sum(-1).max()) <= 2
    assert int(mask.sum()) == 3 * sum(min(2, size - start) for start in range(0, size, 4))


T, D, H = 24, 8, 64


def operands() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    make = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((T, D), (H, D), (D, H))]
    return make[0], make[1], make[2]


def gradients(output: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    torch.manual_seed(4)
    return torch.autograd.grad(output, leaves, torch.randn_like(output))


def masked_dense(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    y1 = x @ up.t()
    return (y1.relu().square() * select24(y1.detach())) @ down.t()


@pytest.mark.parametrize("state", [Sparsity24(), Sparsity24(backward=False), Sparsity24(permute_tokens=False)])
def test_the_forward_and_dx_are_those_of_the_masked_network(state: Sparsity24) -> None:
    leaves = operands()
    ours, oracle = sparse24_ffn(*leaves, state), masked_dense(*leaves)
    assert torch.allclose(ours, oracle, rtol=0, atol=1e-10)
    got, wanted = gradients(ours, leaves), gradients(oracle, leaves)
    assert torch.allclose(got[0], wanted[0], rtol=0, atol=1e-10)
    if not state.backward:
        assert all(torch.allclose(g, w, rtol=0, atol=1e-10) for g, w in zip(got, wanted))


@pytest.mark.parametrize("permute", [True, False])
@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 1.0])
def test_weight_gradients_are_the_oracle_s_with_split_and_permutation(permute: bool, fraction: float) -> None:
    leaves = operands()
    state = Sparsity24(permute_tokens=permute, dense_fraction=fraction)
    _, up, down = gradients(sparse24_ffn(*leaves, state), leaves)
    x, w_up, w_down = (leaf.detach() for leaf in leaves)
    torch.manual_seed(4)
    dy3 = torch.randn(T, D, dtype=torch.float64)
    y1 = x @ w_up.t()
    r = y1.relu() * select24(y1)
    order = token_order(T, torch.device("cpu"))[0] if permute else torch.arange(T)
    kept = torch.zeros(T, H, dtype=torch.bool)
    # by hand, feature by feature: the fullest stay dense, of others 2 of every 4 tokens in the shuffled order
    wanted = math.ceil(math.ceil(fraction * H) / 16) * 16
    dense = sorted(range(H), key=lambda f: (-int((r[:, f] > 0).sum()), f))[:wanted]
    for feature in range(H):
        for start in range(0, T, 4):
            tokens = order[start : start + 4].tolist()
            keep = tokens if feature in dense else [tokens[i] for i in best_pair(r[tokens, feature].tolist())]
            kept[keep, feature] = True
    dy1 = 2 * (dy3 @ w_down) * r
    assert torch.allclose(down, dy3.t() @ (r.square() * kept), rtol=0, atol=1e-10)
    assert torch.allclose(up, (dy1 * kept).t() @ x, rtol=0, atol=1e-10)


def test_rows_that_are_2_4_both_ways_have_the_gradients_of_the_dense_network() -> None:
    """Every unit fires for 2 tokens of 4 at most and every token fires 2 units of 4: nothing is dropped."""
    x = torch.zeros(8, 8, dtype=torch.float64)
    for t in range(8):
        x[t, t] = 1.0 + t / 10
    pattern = torch.full((8, 16), -1.0, dtype=torch.float64)
    for t, f in itertools.product(range(8), range(16)):
        if (t + f) % 4 in (0, 1):
            pattern[t, f] = 0.3 + 0.1 * ((3 * t + 5 * f) % 7)
    up = pattern.t().contiguous()  # y1 = x up' is `pattern` with rows scaled by positive numbers
    down = torch.randn(8, 16, dtype=torch.float64)
    leaves = x.requires_grad_(), up.requires_grad_(), down.requires_grad_()
    state = Sparsity24(permute_tokens=False, dense_fraction=0.0)
    dense = (leaves[0] @ leaves[1].t()).relu().square() @ leaves[2].t()
    for got, wanted in zip(gradients(sparse24_ffn(*leaves, state), leaves), gradients(dense, leaves)):
        assert torch.allclose(got, wanted, rtol=0, atol=1e-10)


def test_dense_features_come_in_multiples_of_sixteen_and_are_the_fullest() -> None:
    active = torch.arange(100) % 50
    mask = dense_features(active, 0.05)
    assert int(mask.sum()) == 16
    assert int(active[mask].min()) >= int(active[~mask].max())
    assert not dense_features(active, 0.0).any()
    assert dense_features(active, 1.0).all()


def test_a_number_that_is_not_finite_reaches_the_output_and_both_weight_gradients() -> None:
    x, up, down = operands()
    poisoned = x.detach().clone()
    poisoned[5, 2] = math.nan
    leaves = (poisoned.requires_grad_(), up, down)
    y = sparse24_ffn(*leaves, Sparsity24(dense_fraction=0.0))
    assert y[5].isnan().all()
    assert y.isfinite().all(-1).sum() == T - 1
    assert all(g.isnan().any() for g in gradients(y, leaves))


def test_fp8_numerics_are_those_of_identically_quantised_fp32() -> None:
    torch.manual_seed(0)
    x, up, down = torch.randn(64, 32), torch.randn(256, 32), torch.randn(32, 256)
    x[7] *= 1e4
    state = Sparsity24(dtype="fp8")
    ours = sparse24_ffn(x, up, down, state)
    y1 = x @ up.t()
    y2 = y1.relu().square() * select24(y1)
    a, b = (v.float() * s for v, s in (quantize_rows(y2), quantize_rows(down)))
    assert (ours - a @ b.t()).norm() <= 0.01 * (a @ b.t()).norm()
    x[7] = 0
    others = sparse24_ffn(x, up, down, state)
    rows = [i for i in range(64) if i != 7]
    assert torch.equal(ours[rows], others[rows])  # one large row changes no other


def test_neighbours_that_fire_alike_lose_less_when_tokens_are_shuffled() -> None:
    """Four tokens in a row share their active features, as in text."""
    torch.manual_seed(0)
    y1 = torch.randn(64, 128).repeat_interleave(4, 0) + 0.1 * torch.randn(256, 128) - 1.0
    drops = dropped_mass(y1, 0.2)
    assert drops.permuted < drops.tokens / 1.5
    assert drops.split < drops.permuted
    assert 0 < drops.features < drops.tokens
    assert float(drops.zeros) == pytest.approx(float((y1 <= 0).float().mean()))
    assert token_mask(y1.relu(), 1.0).all()


def test_every_backend_is_there_or_says_why_not() -> None:
    found = {backend.name: backend for backend in backends()}
    assert list(found) == ["masked dense", "triton pack", "cusparselt", "gather torch", "gather cpp", "gather triton"]
    assert found["masked dense"].available
    assert found["gather torch"].available
    assert all(backend.available != bool(backend.refused_because) for backend in found.values())
    if not torch.cuda.is_available():
        assert found["cusparselt"].refused_because == found["triton pack"].refused_because == "no CUDA device"


def test_a_share_outside_its_bounds_is_refused() -> None:
    with pytest.raises(UsageError, match="max_dropped"):
        Sparsity24(max_dropped=2.0)

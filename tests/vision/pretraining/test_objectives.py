"""The losses against float64 references written from the papers' formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.vision.pretraining.objectives import dino_loss, ibot_loss, koleo_loss, sinkhorn_knopp
from thread_ranks import on_threads


def reference_sinkhorn(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """The plain form, in float64, with the K and B factors spelled out."""
    z = logits.double()
    q = torch.exp((z - z.max()) / temperature).T
    k, b = q.shape
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / k
        q = q / q.sum(0, keepdim=True) / b
    return (q * b).T


def close(ours: torch.Tensor, reference: torch.Tensor, tolerance: float = 1e-6) -> None:
    error = (ours.double() - reference).abs().max() / reference.abs().max()
    assert error <= tolerance, float(error)


@pytest.mark.parametrize("temperature", [0.04, 0.07])
def test_sinkhorn_equals_the_plain_form_in_float64(temperature: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(24, 40) * 0.3
    torch.testing.assert_close(
        sinkhorn_knopp(logits, temperature).double(), reference_sinkhorn(logits, temperature), atol=1e-6, rtol=0
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 30), st.floats(0.1, 40))
def test_sinkhorn_is_finite_and_every_sample_sums_to_one(n: int, k: int, scale: float) -> None:
    probs = sinkhorn_knopp(torch.randn(n, k, generator=torch.Generator().manual_seed(n * k)) * scale, 0.04)
    assert torch.isfinite(probs).all()
    torch.testing.assert_close(probs.sum(1), torch.ones(n), atol=1e-5, rtol=0)


def test_sinkhorn_over_split_rows_equals_the_whole_with_an_empty_rank_too() -> None:
    torch.manual_seed(1)
    logits = torch.randn(12, 9)
    whole = sinkhorn_knopp(logits, 0.05)
    parts = [logits[:7], logits[7:], logits[:0]]
    results = on_threads(lambda part, ranks: sinkhorn_knopp(part, 0.05, ranks=ranks), parts)
    torch.testing.assert_close(torch.cat(results), whole, atol=1e-6, rtol=1e-5)


def test_uniform_logits_give_uniform_targets() -> None:
    torch.testing.assert_close(sinkhorn_knopp(torch.zeros(6, 4), 0.04), torch.full((6, 4), 0.25))


@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("skip_same", [True, False])
def test_dino_loss_and_gradient_equal_the_sum_over_pairs(scale: float, skip_same: bool) -> None:
    torch.manual_seed(2)
    student = (torch.randn(2 if skip_same else 8, 5, 11) * scale).requires_grad_()
    teacher = torch.randn(2, 5, 11).softmax(-1)
    reference_student = student.detach().double().requires_grad_()
    terms = []
    for s, z in enumerate(reference_student):
        for t, p in enumerate(teacher.double()):
            if not (skip_same and s == t):
                terms.append(-(p * F.log_softmax(z / 0.1, -1)).sum(-1).mean())
    reference = torch.stack(terms).mean()
    loss = dino_loss(student, teacher, 0.1, skip_same)
    close(loss, reference)
    loss.backward()
    reference.backward()
    assert student.grad is not None
    assert reference_student.grad is not None
    close(student.grad, reference_student.grad)


def test_ibot_weighs_samples_equally_whatever_their_mask_count() -> None:
    torch.manual_seed(3)
    counts = [1, 3, 0, 4]
    student = torch.randn(sum(counts), 7, requires_grad=True)
    teacher = torch.randn(sum(counts), 7).softmax(-1)
    weights = torch.cat([torch.full((c,), 1 / c) for c in counts if c])
    reference, start = torch.zeros((), dtype=torch.float64), 0
    double = student.detach().double().requires_grad_()
    for c in counts:
        if c:
            rows = slice(start, start + c)
            ce = -(teacher[rows].double() * F.log_softmax(double[rows] / 0.1, -1)).sum(-1)
            reference = reference + ce.mean() / len(counts)
        start += c
    loss = ibot_loss(student, teacher, weights, samples=len(counts))
    close(loss, reference)
    loss.backward()
    reference.backward()
    assert student.grad is not None
    assert double.grad is not None
    close(student.grad, double.grad)


def test_koleo_equals_the_formula_and_pushes_neighbors_apart() -> None:
    torch.manual_seed(4)
    x = torch.randn(10, 6, requires_grad=True)
    double = x.detach().double().requires_grad_()
    unit = F.normalize(double, dim=-1)
    distance = torch.cdist(unit, unit) + torch.eye(10) * 9
    neighbor = distance.argmin(1)
    reference = -torch.log((unit - unit[neighbor]).norm(dim=-1) + 1e-8).mean()
    loss = koleo_loss(x)
    close(loss, reference)
    loss.backward()
    reference.backward()
    assert x.grad is not None
    assert double.grad is not None
    close(x.grad, double.grad, 1e-5)
    stepped = F.normalize((x - 0.01 * x.grad).detach(), dim=-1)
    after = (torch.cdist(stepped, stepped) + torch.eye(10) * 9).min(1).values.log().mean()
    assert after > torch.log(distance.min(1).values).mean()


def test_koleo_is_finite_with_two_identical_rows() -> None:
    x = torch.ones(2, 5, requires_grad=True)
    koleo_loss(x).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()

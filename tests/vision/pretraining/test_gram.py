"""The Gram loss against the formula in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tenfold.vision.pretraining.gram import gram_loss, pool_to


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_value_and_gradient_equal_the_formula(scale: float) -> None:
    torch.manual_seed(0)
    student = (torch.randn(3, 7, 5) * scale).requires_grad_()
    teacher = torch.randn(3, 7, 5)
    double = student.detach().double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for x, g in zip(double, teacher.double()):
        x, g = x / x.norm(dim=1, keepdim=True), g / g.norm(dim=1, keepdim=True)
        for i in range(7):
            for j in range(7):
                total = total + ((x[i] * x[j]).sum() - (g[i] * g[j]).sum()) ** 2 / (3 * 49)
    loss = gram_loss(student, teacher)
    loss.backward()
    total.backward()
    assert float(loss) == pytest.approx(float(total), rel=1e-6)
    assert student.grad is not None
    assert double.grad is not None
    torch.testing.assert_close(student.grad.double(), double.grad, rtol=1e-5, atol=1e-8 / scale)


def test_scale_and_rotation_of_features_cost_nothing_and_no_gradient_reaches_the_teacher() -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 6, 8)
    rotation = torch.linalg.qr(torch.randn(8, 8)).Q
    teacher = x.clone().requires_grad_()
    loss = gram_loss((3 * x @ rotation).requires_grad_(), teacher)
    assert float(loss.detach()) < 1e-10
    loss.backward()
    assert teacher.grad is None


def test_a_larger_map_is_brought_to_the_students_grid() -> None:
    ramp = torch.arange(8.0)[:, None, None].expand(8, 8, 2)[None]
    small = pool_to(ramp, 4, 4).unflatten(1, (4, 4))
    torch.testing.assert_close(small[0, 1:3, 0, 0], torch.tensor([2.5, 4.5]))
    torch.testing.assert_close(pool_to(ramp, 8, 8), ramp.flatten(1, 2))
    expected = F.interpolate(ramp.permute(0, 3, 1, 2), size=(4, 4), mode="bicubic", align_corners=False)
    torch.testing.assert_close(small.permute(0, 3, 1, 2), expected)

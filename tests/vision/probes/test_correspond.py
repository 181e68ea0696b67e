"""The PCA picture shows the structure that is in the features, and nothing else."""

from __future__ import annotations

import torch

from tenfold.vision.probes.correspond import beside, pca_map


def test_two_groups_of_patches_get_two_colors_shared_by_the_images() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(12), torch.randn(12)
    first = torch.where(torch.arange(8)[None, :, None] < 4, left, right).expand(6, 8, 12)
    second = right.expand(5, 5, 12)
    noise = [0.01 * torch.randn(6, 8, 12), 0.01 * torch.randn(5, 5, 12)]
    a, b = pca_map([first + noise[0], second + noise[1]])
    assert a.shape == (6, 8, 3)
    main = a[..., 0]
    assert (main[:, :4].mean() - main[:, 4:].mean()).abs() > 0.9
    assert (b[..., 0].mean() - main[:, 4:].mean()).abs() < 0.05


def test_the_picture_does_not_depend_on_the_sign_of_the_components() -> None:
    torch.manual_seed(1)
    tokens = torch.randn(4, 4, 6)
    again = pca_map([tokens.clone()])[0]
    torch.testing.assert_close(pca_map([tokens])[0], again)
    assert pca_map([torch.ones(2, 2, 5)])[0].isfinite().all()
    assert pca_map([torch.randn(1, 2, 2)])[0].shape == (1, 2, 3)


def test_one_square_per_patch() -> None:
    image = torch.zeros(20, 30, 3, dtype=torch.uint8)
    picture = torch.rand(2, 3, 3)
    both = beside(image, picture)
    assert both.shape[0] == 20
    assert len(both[:, -30:].reshape(-1, 3).unique(dim=0)) == 6

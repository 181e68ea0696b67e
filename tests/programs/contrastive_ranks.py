"""The contrastive loss and its gradients on real gloo ranks, for tests/vision/text/test_contrastive.py."""

from __future__ import annotations

import os
from pathlib import Path

import torch

PAIRS, WIDTH = 24, 10


def whole(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Raw images and texts of all ranks, and the logarithm of the scale."""
    generator = torch.Generator().manual_seed(3)
    images, texts = (torch.randn(PAIRS, WIDTH, generator=generator).to(dtype) for _ in range(2))
    return images.requires_grad_(), texts.requires_grad_(), torch.tensor(2.7, dtype=dtype, requires_grad=True)


def rank_of(environment: dict[str, str], folder: Path, dtype: torch.dtype) -> None:
    """One rank: its rows' loss and gradients, averaged over ranks as the trainer does."""
    from tenfold.engine.parallel import join
    from tenfold.vision.text.contrastive import contrastive_loss

    os.environ.update(environment)
    place = join("cpu")
    images, texts, log_scale = whole(dtype)
    share = PAIRS // place.world
    mine = slice(place.rank * share, (place.rank + 1) * share)
    sides = [torch.nn.functional.normalize(x[mine], dim=1) for x in (images, texts)]
    loss = contrastive_loss(sides[0], sides[1], log_scale.exp(), place.collectives(), chunk=5)
    loss.backward()
    results = {"loss": loss.detach(), "images": images.grad, "texts": texts.grad, "scale": log_scale.grad}
    for value in results.values():
        assert value is not None
        torch.distributed.all_reduce(value)
        value /= place.world
    if place.first:
        torch.save(results, folder / "two.pt")
    place.leave()

"""Collectives and their gradients on real gloo ranks: python two_ranks.py, under torchrun's environment."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tenfold.engine.parallel import Collectives, join


def loss_of(x: torch.Tensor, ranks: Collectives, w: torch.Tensor) -> torch.Tensor:
    """A loss that needs the global batch in every way: its mean, its largest entry, all of its rows."""
    y = x @ w
    count = ranks.all_reduce_sum(torch.tensor([float(len(x))]))
    mean = ranks.all_reduce_sum(y.sum(0)) / count
    top = ranks.maximum(y.amax(0))
    everyone = ranks.all_gather(y)
    return ((y - mean).square().sum(1) + (y @ everyone.T).tanh().sum(1) + (y / top).sum(1)).mean()


def main(folder: Path) -> None:
    place = join("cpu")
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(8, 5, generator=generator), torch.randn(5, 3, generator=generator).requires_grad_()
    rows = 8 // place.world
    loss = loss_of(x[place.rank * rows :][:rows], place.collectives(), w)
    loss.backward()
    assert w.grad is not None
    gradient, value = w.grad.clone(), loss.detach().clone()
    if place.world > 1:
        torch.distributed.all_reduce(gradient)
        torch.distributed.all_reduce(value)
    assert place.any(place.rank == place.world - 1)
    assert not place.any(False)
    if place.first:
        torch.save({"loss": value / place.world, "gradient": gradient / place.world}, folder / f"{place.world}.pt")
    place.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

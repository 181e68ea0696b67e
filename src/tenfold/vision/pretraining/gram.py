"""Gram anchoring: the student's patch similarities are held to those of an earlier teacher.

DINOv3 (arXiv 2508.10104, section 4). Long training improves global features and ruins local ones; the similarities
between the patches of an image, taken from a teacher of before that, are what the loss keeps.

    loss = gram_loss(student_tokens, pool_to(gram_tokens, 16, 16))

    B images   P patches   D width   h w patch grid
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tenfold.config import require
from tenfold.engine.schedule import Schedule, constant


@dataclass(frozen=True)
class GramConfig:
    """Gram anchoring. The Gram teacher is the starting run's teacher, and is replaced by the EMA teacher `refreshes` times,
    every `refresh_every` steps (DINOv3, arXiv 2508.10104, section 4.2)."""

    weight: Schedule = field(default_factory=lambda: constant(0.0))  # of the loss; 0 throughout: no Gram teacher
    refresh_every: int = 10_000  # steps
    refreshes: int = 3  # at most

    def __post_init__(self) -> None:
        require(self.refresh_every >= 1, "gram.refresh_every", self.refresh_every, "a whole number >= 1")
        require(self.refreshes >= 0, "gram.refreshes", self.refreshes, "a whole number >= 0")

    @property
    def active(self) -> bool:
        return self.weight.peak > 0 or self.weight.final > 0


def gram_loss(student: Float[Tensor, "b p d"], teacher: Float[Tensor, "b p d"]) -> Float[Tensor, ""]:
    """Mean over images and over all P^2 entries of (X_S X_S^T - X_G X_G^T)^2, rows L2-normalised, in fp32.

    The mean is the released code's; the paper writes the Frobenius sum, which is P^2 times larger. No gradient goes into
    the teacher.
    """
    x = F.normalize(student.float(), dim=-1)
    g = F.normalize(teacher.detach().float(), dim=-1)
    return (x @ x.transpose(1, 2) - g @ g.transpose(1, 2)).square().mean()


def pool_to(patch_tokens: Float[Tensor, "b h w d"], height: int, width: int) -> Float[Tensor, "b p d"]:
    """High-resolution Gram: features of a larger image brought to the student's grid, bicubic without antialiasing."""
    planes = patch_tokens.permute(0, 3, 1, 2).float()
    if planes.shape[2:] != (height, width):
        planes = F.interpolate(planes, size=(height, width), mode="bicubic", align_corners=False, antialias=False)
    return planes.flatten(2).transpose(1, 2)

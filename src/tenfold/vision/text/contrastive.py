"""The symmetric contrastive loss of CLIP (arXiv 2103.00020, figure 3) over the global batch, in memory linear in the local one.

    loss = contrastive_loss(images, texts, scale, ranks)           unit vectors (B, E) of this rank's pairs

Every rank multiplies its images with all texts, a chunk of texts at a time, and keeps only log-sum-exps: of its rows
directly, of the columns in part, which the ranks then join. The backward computes the chunks again. Value and gradient
are those of the plain loss in one process: the trainer averages both over ranks.

    B pairs of this rank   G pairs of all ranks   E width   S = scale * images @ texts.T, (B, G) and never held
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tenfold.engine.parallel import Collectives
from tenfold.vision.pretraining.objectives import ALONE

CHUNK = 512  # texts at a time


def contrastive_loss(
    images: Float[Tensor, "b e"],
    texts: Float[Tensor, "b e"],
    scale: Float[Tensor, ""],
    ranks: Collectives = ALONE,
    chunk: int = CHUNK,
) -> Float[Tensor, ""]:
    """Mean over pairs of the two cross-entropies: of an image among all texts, and of a text among all images.

    Every rank holds as many pairs. `scale` is the inverse temperature.
    """
    everyone = ranks.all_gather(texts)
    rows, columns = _LogSumExps.apply(images, everyone, scale, ranks, chunk)
    matching = scale * (images * texts).sum(1)
    return 0.5 * (rows.mean() + columns.mean()) - matching.mean()


@torch.no_grad()
def retrieved(
    images: Float[Tensor, "b e"], texts: Float[Tensor, "b e"], ranks: Collectives = ALONE, chunk: int = CHUNK
) -> Float[Tensor, ""]:
    """The share of this rank's images to which no text of any rank is nearer than their own."""
    best = images.new_full((len(images),), -torch.inf)
    for part in ranks.all_gather(texts).split(chunk):
        best = torch.maximum(best, (images @ part.T).amax(1))
    return ((images * texts).sum(1) >= best - 1e-6).float().mean()


class _LogSumExps(torch.autograd.Function):
    """(B,) log-sum-exps of this rank's rows of S over all texts, and (G,) of all columns over the images of all ranks."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, scale: Tensor, ranks: Collectives, chunk: int
    ) -> tuple[Tensor, Tensor]:
        rows = images.new_full((len(images),), -torch.inf)
        parts = []
        for part in texts.split(chunk):
            logits = scale * (images @ part.T)
            rows = torch.logaddexp(rows, logits.logsumexp(1))
            parts.append(logits.logsumexp(0))
        columns = torch.cat(parts)
        top = ranks.maximum(columns)
        columns = top + ranks.all_reduce_sum((columns - top).exp()).log()
        ctx.save_for_backward(images, texts, scale, rows, columns)
        ctx.ranks, ctx.chunk = ranks, chunk
        return rows, columns

    @staticmethod
    def backward(ctx: Any, row_gradient: Tensor, column_gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        images, texts, scale, rows, columns = ctx.saved_tensors
        total = ctx.ranks.all_reduce_sum(column_gradient)  # the loss of every rank depends on every column
        images_gradient, scale_gradient = torch.zeros_like(images), torch.zeros_like(scale)
        text_parts = []
        for part, column, gradient in zip(texts.split(ctx.chunk), columns.split(ctx.chunk), total.split(ctx.chunk)):
            products = images @ part.T
            logits = scale * products
            slope = (logits - rows[:, None]).exp() * row_gradient[:, None] + (logits - column).exp() * gradient
            scale_gradient += (slope * products).sum()
            slope = slope * scale
            images_gradient += slope @ part
            text_parts.append(slope.T @ images)
        return images_gradient, torch.cat(text_parts), scale_gradient, None, None

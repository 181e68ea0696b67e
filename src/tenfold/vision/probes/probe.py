"""Frozen-feature evaluations: weighted k-NN, linear and attentive probes, retrieval, and the raw-pixel baseline beside them.

k-NN: cosine similarity, votes exp(similarity / 0.07) (DINO's protocol, arXiv 2104.14294, section 4.1).
Linear: SGD over 13 learning rates on [CLS; mean patch] or whatever features are given; the rate is chosen on a slice
of the training rows, never on the validation rows.
Attentive: one learned query attends to all tokens of an image (arXiv 2508.10104, section 6.1.5, here on single images).

    N training rows   M evaluation rows   D feature width   C classes   T tokens of an image
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from tenfold.config import require

ATTENTIVE_RATES = (3e-4, 1e-3, 3e-3)
LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)


def knn_classify(
    train: Float[Tensor, "n d"],
    train_labels: Int[Tensor, " n"],
    queries: Float[Tensor, "m d"],
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    classes: int | None = None,
    chunk: int = 1024,
) -> dict[int, Int[Tensor, " m"]]:
    """Predicted class of every query for each k (a k above N is N). Ties in the vote go to the lower class id."""
    require(len(train) > 0, "train", len(train), "at least one row")
    require(all(k >= 1 for k in ks), "k", ks, "whole numbers >= 1")
    classes = classes or int(train_labels.max()) + 1
    bank = F.normalize(train.float(), dim=1)
    largest = min(max(ks), len(bank))
    predicted: dict[int, list[Tensor]] = {k: [] for k in ks}
    for rows in F.normalize(queries.float(), dim=1).split(chunk):
        similarity, index = (rows @ bank.T).topk(largest, dim=1)
        votes = (similarity / temperature).exp()
        labels = train_labels[index]
        for k in ks:
            score = votes.new_zeros(len(rows), classes).scatter_add_(1, labels[:, :k], votes[:, :k])
            predicted[k].append(score.argmax(1))
    return {k: torch.cat(parts) for k, parts in predicted.items()}


def knn_accuracy(
    train: Float[Tensor, "n d"],
    train_labels: Int[Tensor, " n"],
    queries: Float[Tensor, "m d"],
    labels: Int[Tensor, " m"],
    k: int = 20,
) -> float:
    """Percent of queries whose weighted k-NN vote is right."""
    predicted = knn_classify(train, train_labels, queries, ks=(k,))[k]
    return 100.0 * (predicted == labels).double().mean().item()


def pixel_features(images: UInt8[Tensor, "n h w 3"], side: int = 16) -> Float[Tensor, "n d"]:
    """The baseline: images averaged down to side x side, with each image's mean removed."""
    pixels = images.permute(0, 3, 1, 2).float() / 255
    small = F.adaptive_avg_pool2d(pixels, side).flatten(1)
    return small - small.mean(1, keepdim=True)


def linear_probe(
    train: Float[Tensor, "n d"],
    train_labels: Int[Tensor, " n"],
    queries: Float[Tensor, "m d"],
    labels: Int[Tensor, " m"],
    epochs: int = 100,
    batch: int = 256,
    seed: int = 0,
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> dict[str, float]:
    """Percent right of a linear classifier: SGD with momentum 0.9 and a cosine, one classifier per learning rate,
    all trained at once; the rate is chosen on every tenth training row, then all rows are used.

    Returns {"linear": accuracy, "lr": chosen rate}.
    """
    mean, std = train.mean(0), train.std(0).clamp_min(1e-6)
    train, queries = (train - mean) / std, (queries - mean) / std
    held = torch.arange(len(train)) % 10 == 9
    rates = torch.tensor(learning_rates)
    chosen = 0
    if len(learning_rates) > 1 and held.any() and not held.all():
        trial = _fit(train[~held], train_labels[~held], rates, epochs, batch, seed)
        chosen = int(_accuracy(trial, train[held], train_labels[held]).argmax())
    final = _fit(train, train_labels, rates[chosen : chosen + 1], epochs, batch, seed)
    return {"linear": float(_accuracy(final, queries, labels)[0]), "lr": float(rates[chosen])}


class AttentivePool(nn.Module):
    """(B, T, D) -> (B, C): layer norm, one learned query over the tokens with several heads, layer norm, linear."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        heads = max(h for h in range(1, 13) if dim % h == 0)
        self.before, self.after = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.linear = nn.Linear(dim, classes)

    def forward(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b c"]:
        x = self.before(tokens)
        pooled, _ = self.attention(self.query.expand(len(x), -1, -1), x, x, need_weights=False)
        return self.linear(self.after(pooled[:, 0]))


def attentive_probe(
    train: Float[Tensor, "n t d"],
    train_labels: Int[Tensor, " n"],
    queries: Float[Tensor, "m t d"],
    labels: Int[Tensor, " m"],
    epochs: int = 20,
    batch: int = 256,
    seed: int = 0,
    learning_rates: Sequence[float] = ATTENTIVE_RATES,
) -> dict[str, float]:
    """Percent right of an attentive probe on frozen tokens: AdamW with a cosine to 0; the rate is chosen on every tenth
    training row, then all rows are used.

    Returns {"attentive": accuracy, "lr": chosen rate}.
    """
    require(len(train) > 0, "train", len(train), "at least one row")
    require(epochs >= 1, "epochs", epochs, "a whole number >= 1")
    held = torch.arange(len(train)) % 10 == 9
    classes = int(train_labels.max()) + 1

    def right(rate: float, x: Tensor, y: Tensor, test: Tensor, truth: Tensor) -> float:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            pool = AttentivePool(x.shape[2], classes)
            optimizer = torch.optim.AdamW(pool.parameters(), lr=rate, weight_decay=0.05)
            size = min(batch, len(x))
            steps = epochs * (len(x) // size)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for _ in range(epochs):
                for rows in torch.randperm(len(x))[: len(x) // size * size].split(size):
                    optimizer.zero_grad()
                    F.cross_entropy(pool(x[rows].float()), y[rows]).backward()
                    optimizer.step()
                    schedule.step()
        with torch.inference_mode():
            predicted = torch.cat([pool(part.float()).argmax(1) for part in test.split(batch)])
        return 100.0 * (predicted == truth).double().mean().item()

    chosen = learning_rates[0]
    if len(learning_rates) > 1 and held.any() and not held.all():
        trial = (train[~held], train_labels[~held], train[held], train_labels[held])
        chosen = max(learning_rates, key=lambda rate: right(rate, *trial))
    return {"attentive": right(chosen, train, train_labels, queries, labels), "lr": chosen}


def retrieval_map(
    gallery: Float[Tensor, "n d"],
    gallery_labels: Int[Tensor, " n"],
    queries: Float[Tensor, "m d"],
    labels: Int[Tensor, " m"],
    chunk: int = 256,
) -> float:
    """Mean average precision, per cent: gallery rows ordered by cosine, those of the query's label are right ones. A query
    whose label the gallery lacks is left out."""
    bank = F.normalize(gallery.float(), dim=1)
    rank = torch.arange(1, len(bank) + 1)
    precisions = []
    for rows, truth in zip(F.normalize(queries.float(), dim=1).split(chunk), labels.split(chunk)):
        order = (rows @ bank.T).argsort(dim=1, descending=True, stable=True)
        right = (gallery_labels[order] == truth[:, None]).double()
        found = right.sum(1)
        precisions.append(((right.cumsum(1) / rank * right).sum(1) / found)[found > 0])
    scores = torch.cat(precisions)
    require(len(scores) > 0, "labels", "none of them", "labels that the gallery has too")
    return 100.0 * scores.mean().item()


def _fit(x: Tensor, y: Tensor, rates: Tensor, epochs: int, batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """R linear classifiers at once. The gradient of softmax regression is written out: (probability - one-hot) x^T."""
    classes, n = int(y.max()) + 1, len(x)
    weight = torch.zeros(len(rates), classes, x.shape[1])
    bias = torch.zeros(len(rates), classes)
    velocity_w, velocity_b = torch.zeros_like(weight), torch.zeros_like(bias)
    generator = torch.Generator().manual_seed(seed)
    batch = min(batch, n)
    steps = epochs * (n // batch)
    one_hot = F.one_hot(y, classes).float()
    step = 0
    for _ in range(epochs):
        order = torch.randperm(n, generator=generator)
        for start in range(0, n - batch + 1, batch):
            rows = order[start : start + batch]
            logits = torch.einsum("bd,rcd->rbc", x[rows], weight) + bias[:, None]
            error = (logits.softmax(-1) - one_hot[rows]) / batch
            scale = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / max(1, steps)))) * (batch / 256)
            velocity_w.mul_(0.9).add_(torch.einsum("rbc,bd->rcd", error, x[rows]))
            velocity_b.mul_(0.9).add_(error.sum(1))
            weight -= (rates * scale)[:, None, None] * velocity_w
            bias -= (rates * scale)[:, None] * velocity_b
            step += 1
    return weight, bias


def _accuracy(model: tuple[Tensor, Tensor], x: Tensor, y: Tensor) -> Tensor:
    weight, bias = model
    predicted = (torch.einsum("bd,rcd->rbc", x, weight) + bias[:, None]).argmax(-1)
    return 100.0 * (predicted == y).double().mean(1)

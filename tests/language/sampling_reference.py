"""The distribution of the next token by plain lists, step by step, for tests of sampling and of rejection sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from tenfold.language.sampling.sampling import SamplingParams

PLAIN = SamplingParams(temperature=1.0)


CUTS = {
    "plain": PLAIN,
    "temperature": SamplingParams(temperature=0.6),
    "top-k": SamplingParams(temperature=1.3, top_k=3),
    "top-p": SamplingParams(temperature=0.9, top_p=0.8),
    "all": SamplingParams(temperature=0.8, top_k=4, top_p=0.9),
    "one token": SamplingParams(temperature=1.0, top_k=1),
}


def reference(logits: Tensor, params: SamplingParams, allowed: Tensor | None = None) -> Tensor:
    """The law of one row, step by step as plain decoding takes them."""
    x = [float(v) if allowed is None or bool(allowed[i]) else -float("inf") for i, v in enumerate(logits)]
    weights = [2.718281828459045 ** (v / params.temperature) for v in x]
    order = sorted(range(len(x)), key=lambda i: -weights[i])
    if params.top_k:
        order = order[: params.top_k]
    total, kept, mass = sum(weights[i] for i in order), [], 0.0
    for i in order:
        if mass >= params.top_p:
            break
        kept.append(i)
        mass += weights[i] / total
    p = torch.zeros(len(x), dtype=torch.float64)
    for i in kept:
        p[i] = weights[i] / sum(weights[j] for j in kept)
    return p

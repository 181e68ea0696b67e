"""How well a language model predicts text: nats per byte, whatever its vocabulary.

nats_per_byte(model, tokens, vocabulary.widths, length=512)
unigram_floor(train, held_back, widths)              what token frequencies alone reach
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

ROWS = 32  # sequences at once


@torch.no_grad()
def nats_per_byte(model: nn.Module, tokens: Int[Tensor, " n"], widths: np.ndarray, length: int) -> float:
    """Total surprise of tokens 1 to n-1 over their bytes, in windows of `length` that do not overlap: the first token of a
    window is predicted from the last of the window before alone."""
    device = next(model.parameters()).device
    nats = 0.0
    count = (len(tokens) - 1) // length
    rows = torch.stack([tokens[i * length : (i + 1) * length + 1] for i in range(count)])
    for part in rows.split(ROWS):
        part = part.to(device)
        logits = model(part[:, :-1]).logits.flatten(0, 1).float()
        nats += float(F.cross_entropy(logits, part[:, 1:].flatten(), reduction="sum"))
    return nats / int(widths[rows[:, 1:].numpy()].sum())


def unigram_floor(train: np.ndarray, held_back: np.ndarray, widths: np.ndarray) -> float:
    """Nats per byte of the held-back tokens when each is predicted by its frequency in `train` (one added to all)."""
    counts = np.bincount(train, minlength=len(widths)).astype(np.float64) + 1
    return float(-np.log(counts / counts.sum())[held_back].sum() / widths[held_back].sum())

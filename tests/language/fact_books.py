"""A small book of facts, and a model that knows what it is told, for tests of recall."""

from __future__ import annotations

import types

import torch
from torch import Tensor, nn

from tenfold.language.pretraining.factbook import Fact, FactBook


def small_book(count: int = 300) -> FactBook:
    return FactBook([Fact(f"land {i % 60}", f"field {i // 60}", f"answer {i % 17}") for i in range(count)], floor=0.2)


class Knows(nn.Module):
    """Predicts the text of its statements byte for byte, and a space where it knows nothing."""

    def __init__(self, statements: list[str]) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        self.statements = [s.encode() for s in statements]

    def forward(self, tokens: Tensor) -> types.SimpleNamespace:
        logits = torch.zeros(*tokens.shape, 256)
        logits[..., 32] = 1.0
        for row, ids in enumerate(tokens.tolist()):
            for at in range(1, len(ids) + 1):
                told = bytes(ids[:at])
                found = next((s for s in self.statements if len(s) > at and s.startswith(told)), None)
                if found is not None:
                    logits[row, at - 1, found[at]] = 20.0
        return types.SimpleNamespace(logits=logits)

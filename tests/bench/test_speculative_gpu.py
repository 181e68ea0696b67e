"""The benchmark of a GPU's steps says when there is none, and measures both sides with what it is given."""

from __future__ import annotations

import pytest
import torch

from tenfold.bench import speculative_gpu
from tenfold.language.models.config import LlamaConfig

TINY = LlamaConfig(vocabulary=300, dim=32, hidden=48, depth=8, heads=4, kv_heads=2, context=600)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA, and the note is for those without")
def test_without_cuda_the_table_says_so() -> None:
    result = speculative_gpu.run()
    assert result["rows"] == []
    assert "no CUDA" in result["notes"][0]


def test_both_sides_are_measured_and_acceptance_is_said_to_be_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculative_gpu, "PROMPT", 9)
    target, drafter = speculative_gpu.models(TINY, torch.device("cpu"))
    result = speculative_gpu.measure(target, drafter, (1, 3), steps=3, rounds=1)
    assert [(row["batch"], row["nodes"] > 0) for row in result["rows"]] == [(1, False), (1, True), (3, True)]
    assert all(row["ratio"] > 0 and row["ms a step"] > 0 for row in result["rows"])
    assert "acceptance simulated" in result["notes"][0]

"""A table on 2 and 4 real ranks, whole or split by width, equals one process on the joined batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import memory_ranks
import pytest
import torch

from jobs import run_ranks
from tenfold.engine.parallel import Place

ALONE = Place(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return memory_ranks.train(ALONE, 1, "ddp")


@pytest.mark.parametrize(
    ("world", "ranks", "parallel"),
    [(2, 1, "ddp"), (2, 2, "ddp"), (4, 4, "ddp"), (4, 2, "ddp"), (2, 1, "fsdp"), (2, 2, "fsdp"), (4, 2, "fsdp")],
)
def test_ranks_compute_what_one_process_does(
    one: dict[str, Any], tmp_path: Path, world: int, ranks: int, parallel: str
) -> None:
    run_ranks(memory_ranks.main, world, tmp_path, ranks, parallel)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    close: Any = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(torch.cat([part["logits"] for part in found]), one["logits"], **close)
    for name, gradient in one["gradients"].items():
        if name == "memory.values" and ranks > 1:
            ours = torch.cat([part["gradients"][name] for part in found[:ranks]], 1)
        else:
            ours = found[0]["gradients"][name]
        torch.testing.assert_close(ours, gradient, **close, msg=name)
    torch.testing.assert_close(found[0]["norms"], one["norms"], **close)
    for part in found:
        torch.testing.assert_close(part["losses"], one["losses"], **close)
        assert part["held"] <= 1.1 * one["held"] / ranks


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("width", "allowed are 1, 3, 5, 15"),
        ("peer", "pkm and plus"),
        ("group", "allowed are 1, 2"),
        ("tokens", "[3, 6]"),
    ],
)
def test_what_cannot_be_split_is_refused_on_every_rank(tmp_path: Path, case: str, words: str) -> None:
    run_ranks(memory_ranks.refused, 2, tmp_path, case)
    for rank in range(2):
        assert words in (tmp_path / f"{rank}.txt").read_text()

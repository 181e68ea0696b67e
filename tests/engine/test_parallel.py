"""Losses over ranks equal the losses of one process, value and gradient."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import leaving_ranks
import pytest
import torch

from jobs import free_port, run_ranks
from tenfold.engine.parallel import join, wrap
from tenfold.errors import UsageError

PROGRAM = Path(__file__).parents[1] / "programs" / "two_ranks.py"


def test_collectives_on_two_ranks_have_the_value_and_gradient_of_one_process(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(PROGRAM), str(tmp_path)], check=True, env=environment)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(PROGRAM)]
    subprocess.run([*words, str(tmp_path)], check=True, env=environment)
    one, two = torch.load(tmp_path / "1.pt"), torch.load(tmp_path / "2.pt")
    torch.testing.assert_close(two["loss"], one["loss"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(two["gradient"], one["gradient"], rtol=1e-5, atol=1e-6)


def test_a_rank_that_is_done_ends() -> None:
    """Gloo's thread and the destructor of the group wait for nothing of each other's, whoever holds the group last."""
    run_ranks(leaving_ranks.main, 2, [free_port() for _ in range(20)], seconds=60)


def test_one_process_is_its_own_group() -> None:
    place = join("cpu")
    assert (place.rank, place.world, place.first) == (0, 1, True)
    model = torch.nn.Linear(2, 2)
    assert wrap(model, place, "fsdp") is model
    x = torch.randn(3)
    assert place.collectives().all_gather(x) is x


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA, and the message is for those without")
def test_cuda_without_cuda_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(UsageError, match="auto, cpu"):
        join("cuda")

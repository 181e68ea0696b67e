"""The kernel for attention over KV pages attends as plain operations do: on a GPU, and in Triton's interpreter elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tenfold.inference.device_pages import attend_paged

SIZE, PAGES = 4, 40


def compare(device: str, dtype: torch.dtype = torch.float32, programs: int | None = None) -> None:
    """programs: of which the interpreter runs one after the other."""
    from tenfold.kernels import paged_triton

    paged_triton.PROGRAMS = programs or paged_triton.PROGRAMS
    torch.manual_seed(0)
    for groups, repeat, rows, width in ((2, 3, 4, 8), (1, 1, 1, 64), (1, 5, 17, 24)):
        lengths = [0, 9, 170]
        wide = torch.randint(PAGES, (3, 72))  # scattered pages, more than the longest request needs
        pool = torch.randn(2, groups, PAGES * SIZE + SIZE, width, dtype=dtype).to(device)
        mask = torch.rand(rows, rows + 2) < 0.6
        mask[:, 0] = True
        q, k, v = (torch.randn(3, h, rows, width, dtype=dtype).to(device) for h in (groups * repeat, groups, groups))
        prefix = torch.tensor(lengths)
        lows = (prefix[:, None] + torch.arange(rows) - 70).clamp_min(0)
        for low in (None, lows):
            given = [wide, SIZE, prefix, mask, low]
            moved = [part.to(device) if isinstance(part, Tensor) else part for part in given]
            found = paged_triton.attend(q, pool[0], pool[1], *moved)
            expected = attend_paged(q.cpu().float(), pool[0].cpu().float(), pool[1].cpu().float(), *given)
            close = 1e-5 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(found.cpu().float(), expected, atol=close, rtol=close)
        places = torch.randperm(PAGES * SIZE)[: 3 * rows].view(3, rows)
        paged_triton.store(k, v, pool[0], pool[1], places.to(device))
        for new, kept in ((k, pool[0]), (v, pool[1])):
            assert torch.equal(kept[:, places.to(device)].transpose(0, 1), new)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_attends_as_plain_operations_do(dtype: torch.dtype) -> None:
    compare("cuda", dtype)


def test_the_interpreted_kernel_attends_as_plain_operations_do() -> None:
    from needed import package  # here, because this file also runs alone
    from triton_interpreter import interpreted

    package("triton")
    interpreted(__file__)


if __name__ == "__main__":
    compare("cpu", programs=16)

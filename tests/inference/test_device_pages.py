"""A pass whose lengths lie on the device attends as one whose lengths the host knows; the kernel attends as plain operations
do: on a GPU, and in Triton's interpreter where Triton is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from tenfold.inference.device_pages import DeviceStep, attend_paged
from tenfold.inference.pages import PageAllocator, PagedCache, PageTable

SIZE, PAGES, GROUPS, REPEAT, WIDTH = 4, 40, 2, 3, 8
BRANCHES = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]], dtype=torch.bool)


def tables_of(lengths: list[int], pages: PageAllocator) -> tuple[list[PageTable], Tensor]:
    """Scattered pages for requests of these lengths; on the device every table is as wide as the widest."""
    tables = [PageTable(SIZE) for _ in lengths]
    for rows in range(1, max(lengths) + 1):  # in turns, so that no request has one run
        for table, length in zip(tables, lengths):
            assert pages.cover(table, min(rows, length))
    wide = torch.full((len(tables), 12), pages.count)  # the page of nobody
    for row, table in zip(wide, tables):
        row[: len(table.pages)] = torch.tensor(table.pages)
    return tables, wide


@pytest.mark.parametrize(
    ("branches", "before", "window"), [(True, 0, None), (True, 2, None), (False, 0, None), (False, 0, 5)]
)
def test_a_step_on_the_device_attends_as_one_of_the_host(branches: bool, before: int, window: int | None) -> None:
    torch.manual_seed(0)
    starts, count = [9, 0, 17], 4 - before
    mask = BRANCHES[before:] if branches else None
    tables, wide = tables_of([s + 4 for s in starts], PageAllocator(PAGES, SIZE))
    host, device = (PagedCache(2, GROUPS, WIDTH, PAGES + 1, SIZE) for _ in range(2))
    host.keys.normal_()
    host.values.normal_()
    device.keys.copy_(host.keys)
    device.values.copy_(host.values)
    q, k, v = (torch.randn(3, heads, count, WIDTH) for heads in (GROUPS * REPEAT, GROUPS, GROUPS))
    theirs = host.step(tables, [s + before for s in starts], [count] * 3, None, window)
    prefix = torch.tensor(starts)
    lows = None if window is None else prefix[:, None] + torch.arange(count) - window + 1
    ours = DeviceStep(device, wide, SIZE, prefix, before, count, lows)
    for layer in range(2):
        expected = theirs.layers[layer].attend(q, k, v, mask)
        torch.testing.assert_close(ours.layers[layer].attend(q, k, v, mask), expected, atol=2e-6, rtol=1e-5)
    assert torch.equal(device.keys, host.keys)
    assert torch.equal(device.values, host.values)


def compare(device: str, dtype: torch.dtype = torch.float32, programs: int | None = None) -> None:
    """programs: of which the interpreter runs one after the other."""
    from tenfold.kernels import paged_triton

    paged_triton.PROGRAMS = programs or paged_triton.PROGRAMS
    torch.manual_seed(0)
    for groups, repeat, rows, width in ((2, 3, 4, 8), (1, 1, 1, 64), (1, 5, 17, 24)):
        lengths = [0, 9, 170]
        _, wide = tables_of([12, 30, 40], PageAllocator(PAGES, SIZE))
        wide = torch.cat([wide, torch.randint(PAGES, (3, 60))], dim=1)
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
    from conftest import package  # here, because this file also runs alone

    package("triton")
    done = subprocess.run(
        [sys.executable, __file__], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    compare("cpu", programs=16)

"""A pass over KV pages whose lengths lie on the device attends as one whose lengths the host knows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tenfold.inference.device_pages import DeviceStep
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

"""No page is lost or given twice, whatever requests come, grow, shrink and go."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.inference.pages import PageAllocator


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 60)), max_size=60))
def test_pages_are_never_lost_and_never_shared(moves: list[tuple[int, int, int]]) -> None:
    allocator, tables = PageAllocator(12, 4), {}
    for key, action, rows in moves:
        table = tables.get(key)
        if table is None:
            tables[key] = allocator.open(rows)
        elif action == 0:
            allocator.close(tables.pop(key))
        elif action == 1:
            allocator.trim(table, rows)
        else:
            before, wanted = list(table.pages), -(-rows // 4) - len(table.pages)
            room = allocator.free
            assert allocator.cover(table, rows) == (wanted <= room)
            assert table.pages[: len(before)] == before
            if wanted > room:
                assert table.pages == before
        owned = [page for t in tables.values() for page in t.pages]
        assert len(set(owned)) == len(owned)
        assert allocator.free == 12 - len(owned)
        for t in tables.values():
            slots = t.slots(0, t.capacity).tolist()
            assert slots == [page * 4 + i for page in t.pages for i in range(4)]
    for table in tables.values():
        allocator.close(table)
    assert allocator.free == 12
    assert allocator.open(48).run == range(12)  # nothing is still held either


def test_a_request_grows_in_one_run_beside_its_neighbour() -> None:
    allocator = PageAllocator(20, 4)
    first, second = allocator.open(20), allocator.open(20)
    for rows in range(0, 21, 3):
        assert allocator.cover(first, rows)
        assert allocator.cover(second, rows)
    assert first.first == 0
    assert second.first == 20

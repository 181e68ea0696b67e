"""Streams of several answers are merged without loss, and closed when their reader leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tenfold.language.decoding.request import Delta
from tenfold.language.serving.replies import merge


def stream(name: str, count: int, closed: list[str], fails: bool = False) -> AsyncIterator[Delta]:
    async def deltas() -> AsyncIterator[Delta]:
        try:
            for i in range(count):
                await asyncio.sleep(0)
                yield Delta(name, f"{name}{i}", [i])
            if fails:
                raise ValueError(name)
        finally:
            closed.append(name)

    return deltas()


def test_every_delta_comes_once_in_order_with_its_index() -> None:
    async def read() -> list[tuple[int, str]]:
        return [(index, delta.text) async for index, delta in merge([stream("a", 3, []), stream("b", 5, [])])]

    found = asyncio.run(read())
    assert [text for index, text in found if index == 0] == ["a0", "a1", "a2"]
    assert [text for index, text in found if index == 1] == [f"b{i}" for i in range(5)]


def test_a_reader_that_leaves_and_a_stream_that_fails_end_all_streams() -> None:
    closed: list[str] = []

    async def leave() -> None:
        merged = merge([stream("a", 1000, closed), stream("b", 1000, closed)])
        await anext(merged)
        await merged.aclose()  # type: ignore[attr-defined]

    asyncio.run(leave())
    assert sorted(closed) == ["a", "b"]
    closed.clear()

    async def fail() -> None:
        async for _ in merge([stream("a", 2, closed, fails=True), stream("b", 1000, closed)]):
            pass

    with pytest.raises(ValueError, match="a"):
        asyncio.run(fail())
    assert sorted(closed) == ["a", "b"]

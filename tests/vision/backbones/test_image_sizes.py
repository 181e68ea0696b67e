"""Sizes at which a network sees a photograph: bounded by the longer side without a size, and by the area with one."""

from __future__ import annotations

import pytest

from tenfold.vision.backbones.images import LIMIT, fit


def test_without_a_size_the_longer_side_is_at_most_the_limit() -> None:
    assert fit(1536, 2048, None, 8) == (384, LIMIT)
    assert fit(3024, 4032, None, 16) == (384, LIMIT)
    assert fit(96, 160, None, 8) == (96, 160)  # never enlarged
    assert fit(10, 20_000, None, 8) == (8, LIMIT)


def test_a_size_is_the_shorter_side_as_long_as_the_area_is_bounded() -> None:
    assert fit(480, 640, 256, 8) == (256, 344)
    assert fit(100, 400, 256, 8) == (256, 1024)


@pytest.mark.parametrize("shape", [(10, 2000), (2000, 10), (1, 30_000)])
def test_a_strip_does_not_fill_the_memory(shape: tuple[int, int]) -> None:
    height, width = fit(*shape, 512, 8)
    assert height * width <= 1.2 * 4 * 512**2

"""Random numbers depend on their key only, are uniform, and are the same on the host and on a device."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.language.sampling.randomness import device_uniforms, uniforms

KEYS = st.lists(st.integers(0, (1 << 63) - 1), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(KEYS, st.integers(0, 1 << 40), KEYS.map(lambda keys: [key >> 24 for key in keys]), st.integers(1, 5))
def test_a_wider_draw_begins_with_the_narrow_one_and_the_device_agrees(
    seeds: list[int], position: int, purposes: list[int], width: int
) -> None:
    positions = [position + i for i in range(len(seeds))]
    found = uniforms(seeds, positions, purposes, width)
    assert bool(((found > 0) & (found < 1)).all())
    assert torch.equal(uniforms(seeds, positions, purposes, width + 3)[..., :width], found)
    seeds_, positions_, purposes_ = (torch.tensor(part) for part in (seeds, positions, purposes))
    assert torch.equal(device_uniforms(seeds_, positions_, purposes_, width), found)


def test_uniforms_depend_on_their_key_alone_and_are_uniform() -> None:
    alone = uniforms([7], [100], [3], 5)
    assert torch.equal(uniforms([1, 7], [5, 100], [9, 3, 4], 5)[1, 1], alone[0, 0])
    asked = torch.tensor([1, (1 << 63) - 1]), torch.tensor([5, 100]), torch.tensor([9, 3, 1 << 16])
    seeds, positions, purposes = (part.tolist() for part in asked)
    assert torch.equal(device_uniforms(*asked, 5), uniforms(seeds, positions, purposes, 5))
    many = uniforms(range(100), [4] * 100, range(10), 100).flatten()
    assert 0 < many.min() < 1e-4
    assert 1 - 1e-4 < many.max() < 1
    counts = torch.histc(many, 50, 0, 1)
    chi = float(((counts - 2000) ** 2 / 2000).sum())
    assert chi < 85.4  # 49 degrees of freedom, p = 0.001
    assert len(many.unique()) == len(many)

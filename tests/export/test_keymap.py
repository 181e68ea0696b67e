"""Key maps work in both directions without losing a bit, and reading lists every difference with the nearest name."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tenfold.errors import WeightsError
from tenfold.export.keymap import LISTED, Link, Part, check_names, read_links, write_links

LINKS = [
    Link("qkv.weight", (12, 4), Part("q.weight", (4, 4)), Part("k.weight", (4, 4)), Part("v.weight", (4, 4))),
    Link("patch.weight", (8, 12), Part("conv.weight", (8, 3, 2, 2))),
    Link("norm.weight", (5,), Part("ln.weight", (5,))),
]


def theirs() -> dict[str, Tensor]:
    return {part.name: torch.randn(part.shape) for link in LINKS for part in link.parts}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.lists(st.integers(1, 3), max_size=2)),
        min_size=1,
        max_size=4,
    )
)
def test_what_is_written_is_read_back_bit_for_bit(shapes: list[tuple[list[int], list[int]]]) -> None:
    links, state = [], {}
    for number, (rows, rest) in enumerate(shapes):
        parts = [Part(f"theirs.{number}.{i}", (count, *rest)) for i, count in enumerate(rows)]
        links.append(Link(f"own.{number}", (sum(rows), math.prod(rest)), *parts))
        state[f"own.{number}"] = torch.randn(sum(rows), math.prod(rest), dtype=torch.bfloat16)
    written = write_links(links, state)
    assert {name: tuple(t.shape) for name, t in written.items()} == {p.name: p.shape for ln in links for p in ln.parts}
    again = read_links(links, written, "file")
    assert again.keys() == state.keys()
    assert all(again[name].equal(state[name]) and again[name].dtype == torch.bfloat16 for name in state)


def test_parts_are_joined_in_their_order_and_reshaped() -> None:
    tensors = theirs()
    state = read_links(LINKS, tensors, "file")
    assert state["qkv.weight"].equal(torch.cat([tensors[f"{n}.weight"] for n in "qkv"]))
    assert state["patch.weight"].equal(tensors["conv.weight"].flatten(1))


def test_a_default_stands_in_for_a_part_that_the_file_leaves_out_in_the_file_s_number_format() -> None:
    link = Link("bias", (6,), Part("q.bias", (2,)), Part("k.bias", (2,), torch.zeros(2)), Part("v.bias", (2,)))
    tensors = {"q.bias": torch.ones(2).half(), "v.bias": torch.full((2,), 3.0).half()}
    state = read_links([link], tensors, "file")
    assert state["bias"].tolist() == [1, 1, 0, 0, 3, 3]
    assert state["bias"].dtype == torch.float16
    with pytest.raises(WeightsError, match=r"1 missing:\s+q\.bias"):
        read_links([link], {"v.bias": torch.ones(2)}, "file")


def test_every_difference_is_listed_with_the_nearest_name() -> None:
    tensors = theirs()
    tensors["k.wieght"] = tensors.pop("k.weight")
    tensors["ln.weight"] = torch.zeros(6)
    with pytest.raises(WeightsError) as caught:
        read_links(LINKS, tensors, "a.safetensors")
    said = str(caught.value)
    assert said.startswith("a.safetensors: the weights do not fit; nothing was loaded.")
    assert "k.weight  (nearest: k.wieght)" in said
    assert "k.wieght  (nearest: k.weight)" in said
    assert "ln.weight  (has (6,), needs (5,))" in said


def test_a_long_list_is_cut_and_its_count_is_exact() -> None:
    with pytest.raises(WeightsError) as caught:
        check_names({f"layer.{i}": (1,) for i in range(LISTED + 7)}, {}, "file")
    assert f"{LISTED + 7} missing:" in str(caught.value)
    assert "... and 7 more" in str(caught.value)
    assert len(str(caught.value).splitlines()) == LISTED + 3


def test_a_parameter_without_a_link_is_not_left_out_in_silence() -> None:
    with pytest.raises(AssertionError, match=r"no link for \['head'\]"):
        write_links(LINKS, {"head": torch.ones(1)})

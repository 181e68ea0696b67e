"""Pictures of draft trees: every node once, lines as wide as they are accepted, words escaped."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.language.drafting.tree import Tree
from tenfold.language.tuning.tree_picture import accepted_tree, node_shares, speed_svg, tree_svg

SVG = "{http://www.w3.org/2000/svg}"


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_a_line_is_as_wide_as_its_node_is_often_accepted(shares: list[float]) -> None:
    tree = Tree.from_paths([[0], [1], [0, 0], [0, 1], [1, 0]])
    drawn = ElementTree.fromstring(tree_svg(tree, shares))
    widths = [float(line.get("stroke-width", "0")) for line in drawn.iter(f"{SVG}path")]
    assert widths == pytest.approx([0.5 + 14 * share for share in shares], abs=0.051)
    places = [(circle.get("cx"), circle.get("cy")) for circle in drawn.iter(f"{SVG}circle")]
    assert len(set(places)) == 6


def test_words_that_were_not_drafted_are_left_out_and_all_are_escaped() -> None:
    tree = Tree.from_paths([[0], [1], [0, 0]])
    drawn = ElementTree.fromstring(tree_svg(tree, words=["root", "<b>", None, "&"], accepted=[1]))
    assert ["".join(text.itertext()) for text in drawn.iter(f"{SVG}text")] == ["root", "<b>", "&"]
    assert [line.get("stroke-width") for line in drawn.iter(f"{SVG}path")] == ["3.0", "1.0"]


def test_picture_shows_every_node_with_the_share_of_steps_that_accept_it() -> None:
    tree = Tree.from_paths([[0], [1], [0, 0]])
    # Starts 0, 3 and 4 of the walk: two nodes, none, rank 1.
    ranks = torch.tensor([[0, 0], [9, 9], [9, 9], [9, 9], [1, 9], [9, 9], [9, 9]])
    shares = node_shares(tree, [ranks])
    assert shares == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    drawn = ElementTree.fromstring(tree_svg(tree, shares))
    words = [e.text for e in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert sorted(map(str, words)) == ["33 %", "33 %", "33 %", "root"]
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}path"))) == tree.nodes
    assert accepted_tree([[], [[0], [1], [0, 0]]], [ranks]) == tree_svg(tree, shares)


def test_speed_picture_has_a_dot_and_a_ring_for_every_tree_and_names_both() -> None:
    drawn = ElementTree.fromstring(
        speed_svg([(1, 60.0, 61.0), (8, 142.5, 150.0), (8, 120.0, 119.0), (17, 117.0, 110.0)])
    )
    marks = [e.get("style", "") for e in drawn.iter("{http://www.w3.org/2000/svg}use")]
    assert sum("fill-opacity: 0" in style for style in marks) == 4
    assert sum("fill-opacity: 0" not in style for style in marks) == 4
    words = [e.text for e in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"measured", "predicted", "rows of a pass", "tokens per second"} <= set(words)

"""The tour's decoding panel: what it says was accepted is what was accepted, and watching changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import torch

from tenfold.engine.report import Report
from tenfold.language.decoding.request import Stats
from tenfold.language.drafting.tree import Tree
from tenfold.tour.speculation import Answer, DraftedStep, accepted_path, add_trees, summary, watched

TREE = Tree.from_paths([[0], [1], [0, 0], [0, 1]])


class Words:
    def decode(self, ids: list[int]) -> str:
        return " " if ids == [7] else f"w{ids[0]}&"


def answer(seconds: float, tokens: int, calls: int, text: str = "a") -> Answer:
    return Answer(text, Stats(tokens=tokens, calls=calls), [(0.0, 0), (seconds, tokens)])


def test_the_accepted_path_goes_from_the_root_down_and_ends_at_the_targets_own_token() -> None:
    tokens = [-1, 5, 6, 7, 8]
    assert accepted_path(TREE, tokens, [5, 8, 9]) == [1, 4]
    assert accepted_path(TREE, tokens, [6, 8]) == [2]
    assert accepted_path(TREE, tokens, [9]) == []


def test_time_saved_is_against_the_target_only() -> None:
    plain = [answer(2.0, 10, 10), answer(2.0, 10, 10, "b")]
    row = summary("drafter", [answer(1.0, 10, 5), answer(2.0, 10, 3, "c")], plain)
    assert row["time saved"] == "25 %"
    assert row["tokens per target pass"] == "2.50"
    assert row["same texts as the target only"] == "1 of 2"
    assert summary("target only", plain, plain)["time saved"] == "0 %"


def test_a_watched_drafter_drafts_as_before_and_is_left_as_it_was() -> None:
    @dataclass
    class Drafter:
        def draft(self, states: Any, tree: Tree, rule: str) -> Any:
            return type("Draft", (), {"tokens": torch.tensor([[1, 2, 3, 4]])})

    drafter = Drafter()
    with watched(drafter) as drafts:
        assert drafter.draft([None], TREE, "A").tokens.tolist() == [[1, 2, 3, 4]]
        assert drafts == [(TREE, [-1, 1, 2, 3, 4])]
        assert isinstance(drafter, Drafter)
    assert "draft" not in vars(drafter)
    with watched(None) as drafts:
        assert drafts == []


def test_the_pictures_show_the_longest_accepted_draft_and_the_shares() -> None:
    steps = [DraftedStep(TREE, [-1, 5, 6, 7, -1], [1, 3]), DraftedStep(TREE, [-1, 5, 6, 7, 8], [])]
    report = Report("x")
    add_trees(report, steps, Words())
    draft, shares = (ElementTree.fromstring(part["svg"]) for part in report.parts)
    space = "{http://www.w3.org/2000/svg}"
    assert sorted(str(e.text) for e in draft.iter(f"{space}text")) == ["(space)", "root", "w5&", "w6&"]
    filled = [e for e in draft.iter(f"{space}circle") if "good" in e.get("fill", "")]
    assert len(filled) == 3  # the root and two tokens
    assert sorted(str(e.text) for e in shares.iter(f"{space}text")) == ["0 %", "0 %", "50 %", "50 %", "root"]
    add_trees(report, [], Words())
    assert len(report.parts) == 2

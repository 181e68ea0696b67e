"""Dispatch tables come back from their file, read the rule names of the last version, and plan by batch size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from tenfold.errors import UsageError, WeightsError
from tenfold.language.drafting.dispatch import Dispatcher, Entry, MachineClass, shipped
from tenfold.language.drafting.hybrid_trees import FittedTree, HybridTree
from tenfold.language.drafting.ngram import HybridDrafter, NgramDrafter
from tenfold.language.drafting.protocol import Rule
from tenfold.language.drafting.tree import Tree


def test_dispatch_file_comes_back_and_plans(tmp_path: Path) -> None:
    entries = (
        Entry(1, "0", "bf16", "top_k", [[0], [1], [0, 0]], 2, 2.0, 30.0),
        Entry(8, "0", "bf16", "top_k", [], 0, 1.0, 40.0),
        Entry(1, ">0", "bf16", "without_replacement", [[0], [0, 0]], 0, 1.5, 30.0),
    )
    Dispatcher("t", "d", "m", entries).save(tmp_path / "dispatch.json")
    table = Dispatcher.load(tmp_path / "dispatch.json")
    assert table.entries == entries
    drafter = HybridDrafter(NgramDrafter(), NgramDrafter())
    plan = table.planner(drafter)
    assert plan(1, False) == (HybridTree.of(Tree.from_paths([[0], [1], [0, 0]]), 2), "top_k")
    assert plan(3, False)[0].nodes == plan(64, False)[0].nodes == 0
    assert plan(1, True) == (Tree.chain(2), "without_replacement")
    assert plan(2, True) == plan(9, True) == (Tree.chain(0), "top_k")  # beyond the largest measured batch
    with pytest.raises(UsageError, match="prompt lookup"):
        table.planner(NgramDrafter())
    values = json.loads((tmp_path / "dispatch.json").read_text())
    for broken in ({"version": 2}, {"entries": [{"batch": 1}]}, {"entries": [values["entries"][0] | {"paths": [[1]]}]}):
        (tmp_path / "bad.json").write_text(json.dumps(values | broken))
        with pytest.raises(WeightsError):
            Dispatcher.load(tmp_path / "bad.json")


def test_rule_letters_of_the_last_version_are_read_as_names(tmp_path: Path) -> None:
    entry = {"batch": 1, "temperature": "0", "weights": "", "paths": [[0]], "looked_up": 0, "tpc": 1.5, "ms": 9.0}
    values = {"version": 1, "target": "t", "drafter": "d", "machine": "m"}
    for letter, name in zip("ABC", get_args(Rule), strict=True):
        (tmp_path / "old.json").write_text(json.dumps(values | {"entries": [entry | {"rule": letter}]}))
        assert Dispatcher.load(tmp_path / "old.json").entries[0].rule == name
    (tmp_path / "bad.json").write_text(json.dumps(values | {"entries": [entry | {"rule": "D"}]}))
    with pytest.raises(WeightsError, match="top_k, independent, without_replacement"):
        Dispatcher.load(tmp_path / "bad.json")


@pytest.mark.parametrize("machine", get_args(MachineClass))
def test_shipped_tables_are_dispatch_files_that_say_what_was_measured(machine: MachineClass, tmp_path: Path) -> None:
    table = shipped(machine)
    assert "null" in table.note.lower()
    table.save(tmp_path / "again.json")
    assert Dispatcher.load(tmp_path / "again.json") == table
    for entry in table.entries:
        assert (entry.ms is None) or (machine, entry.weights, entry.batch, entry.temperature) == (
            "avx512",
            "bf16",
            1,
            "0",
        )


def test_entries_of_a_format_come_before_those_of_every_format() -> None:
    entries = [Entry(1, "0", weights, "top_k", [[0]] * (weights == ""), 0, None, None) for weights in ("", "int4")]
    table = Dispatcher("", "", "", tuple(entries))
    assert table.planner(NgramDrafter(), "int4")(1, False)[0].nodes == 0
    assert table.planner(NgramDrafter(), "bf16")(1, False)[0].nodes == 1


def test_a_format_that_the_table_does_not_know_drafts_no_more_than_its_memory_bound_rows() -> None:
    table = shipped("avx512")
    for rows, nodes in ((None, [6, 3, 1, 1, 0]), (8, [6, 3, 1, 1, 0]), (4, [3, 1, 0, 0, 0]), (2, [1, 0, 0, 0, 0])):
        plan = table.planner(NgramDrafter(), "a toy", rows)
        assert [plan(batch, False)[0].nodes for batch in range(1, 6)] == nodes


def test_entries_that_differ_in_text_are_one_fitted_shape() -> None:
    def entry(text: str, paths: list[list[int]], looked_up: int) -> Entry:
        return Entry(1, "0", "", "top_k", paths, looked_up, None, None, "lookup", text)  # type: ignore[arg-type]

    entries = entry("", [[0]], 2), entry("known", [[0]], 1), entry("unknown", [[0], [1]], 0)
    shape, _ = Dispatcher("", "", "", entries).planner(HybridDrafter(NgramDrafter(), NgramDrafter()))(1, False)
    one = Tree.chain(1)
    assert shape == FittedTree(HybridTree.of(one, 2), HybridTree.of(one, 1), Tree.from_paths([[0], [1]]))


GOOD = {
    "batch": 1,
    "temperature": "0",
    "weights": "",
    "rule": "top_k",
    "paths": [[0]],
    "looked_up": 0,
    "tpc": None,
    "ms": 9,
}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"rule": "Z"}], "entry.rule = 'Z'"),
        ([{"batch": "1"}], "entry.batch = '1'"),
        ([{"batch": 0}], "entry.batch = 0"),
        ([{"temperature": "1"}], "entry.temperature"),
        ([{"weights": "bf61"}], "entry.weights = 'bf61'"),
        ([{"paths": [["0"]]}], "entry.paths"),
        ([{"looked_up": -1}], "entry.looked_up"),
        ([{"ms": -3.0}], "entry.ms"),
        ([{"tpc": "fast"}], "entry.tpc"),
        ([{"proposes": "both"}], "entry.proposes"),
        ([{"colour": "red"}], "colour"),
        ([{}, {}], "two entries"),
        ([{}, {"text": "known"}], "known and unknown"),
        ([{}, {"text": "known"}, {"text": "unknown", "looked_up": 1}], "nothing to look up"),
        ([{}, {"text": "known", "looked_up": 3}, {"text": "unknown"}], "most nodes"),
        ([], "at least one entry"),
    ],
)
def test_a_table_that_says_what_cannot_be_is_refused(entries: list[dict], words: str, tmp_path: Path) -> None:
    values = {"version": 1, "target": "", "drafter": "", "machine": "", "entries": [GOOD | e for e in entries]}
    (tmp_path / "t.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=words):
        Dispatcher.load(tmp_path / "t.json")

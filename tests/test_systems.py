"""The registry of the ten systems says the true state of each: what is planned has no command, and every command exists."""

from __future__ import annotations

import json

from tenfold.cli import VERBS
from tenfold.registry import recipes
from tenfold.systems import SYSTEMS, systems


def test_ten_rows_stand_in_the_order_of_the_papers_and_are_plain_values() -> None:
    rows = systems()
    assert [row["number"] for row in rows] == list(range(1, 11))
    assert json.loads(json.dumps(rows)) == [{**row, "commands": list(row["commands"])} for row in rows]
    assert len({row["name"] for row in rows}) == 10


def test_every_command_of_a_system_exists_and_what_is_planned_has_none() -> None:
    for system in SYSTEMS:
        assert (system.state == "planned") == (system.commands == ())
        assert (system.state == "planned") == (system.note == "nothing yet")
        for command in system.commands:
            program, *words = command.split()
            assert program == "tenfold"
            assert words[0] in VERBS or " ".join(words[:2]) in VERBS
            if words[0] == "train":
                assert words[1] in {entry.name for entry in recipes}  # by the name of today

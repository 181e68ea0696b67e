"""Every metadata field is used, ignored for a reason, or refused; a field that nobody knows is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

from tenfold.errors import WeightsError
from tenfold.export.fields import Fields

FIELDS = Fields(used=("width",), ignored={"made_*": "says who made it"}, only={"causal": (True,), "experts": ()})


@pytest.mark.parametrize(
    ("name", "fate"),
    [
        ("width", "used"),
        ("made_by", "ignored: says who made it"),
        ("causal", "refused unless True"),
        ("witdh", "refused"),
    ],
)
def test_the_fate_of_a_field(name: str, fate: str) -> None:
    assert FIELDS.fate(name) == fate


@pytest.mark.parametrize(
    "values", [{"width": 3, "made_by": "x", "causal": True}, {"experts": None, "unknown": None}, {}]
)
def test_what_changes_nothing_is_taken(values: dict[str, Any]) -> None:
    FIELDS.check(values, "here")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"causal": False}, "causal = False; allowed is True"),
        ({"experts": 0}, "experts = 0; allowed is null"),
        ({"witdh": 3}, "is it width?"),
        ({"x": "y" * 500}, r"\.\.\."),
    ],
)
def test_what_would_change_the_model_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(WeightsError, match=words) as refused:
        FIELDS.check(values, "here")
    assert len(str(refused.value)) < 500

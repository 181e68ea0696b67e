"""Recipe and TrainerConfig: a field out of its bounds names itself, the bounds themselves are allowed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tenfold.config import FieldError
from tenfold.engine.recipe import Recipe, TrainerConfig

BOUNDS: list[tuple[str, Any, Any]] = [  # field, the last value allowed, the first one refused
    ("steps", 1, 0),
    ("seed", 2**63 - 1, 2**63),
    ("seed", 0, -1),
    ("accumulation", 1, 0),
    ("keep", 2, 1),
    ("log_every", 1, 0),
    ("workers", 0, -1),
    ("checkpoint_every", 0, -1),
    ("validate_every", 0, -1),
    ("threads", 1, 0),
    ("data_errors", 0.0, 1.0),
    ("ema", 0.0, 1.0),
    ("ema", None, float("nan")),
]


@pytest.mark.parametrize(("name", "allowed", "refused"), BOUNDS, ids=str)
def test_a_field_is_refused_behind_its_bound_and_not_at_it(name: str, allowed: Any, refused: Any) -> None:
    assert getattr(TrainerConfig(**{name: allowed}), name) == allowed
    with pytest.raises(FieldError, match=rf"trainer\.{name} = ") as error:
        dataclasses.replace(TrainerConfig(), **{name: refused})
    assert error.value.exit_code == 2


def test_a_recipe_without_a_task_says_which_one_it_is() -> None:
    class Empty(Recipe):
        pass

    with pytest.raises(TypeError, match="Empty does not say how to make its task"):
        Empty().make_task()

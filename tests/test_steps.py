"""A length of training in steps or as a share of the run, which every part of the package reads alike."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.engine.schedule import Schedule
from tenfold.errors import FieldError
from tenfold.nn.sparse24 import Sparsity24
from tenfold.steps import is_length, steps_of
from tenfold.vision.pretraining.objectives import ObjectiveConfig


def test_one_is_a_step_and_one_point_zero_the_whole_run() -> None:
    assert steps_of(1, 500) == 1
    assert steps_of(1.0, 500) == 500


@given(st.integers(0, 1000), st.integers(1, 1000))
def test_a_share_means_the_steps_that_it_was_computed_from(steps: int, total: int) -> None:
    share = min(steps, total) / total
    assert steps_of(share, total) == min(steps, total)


@pytest.mark.parametrize("value", [-1, -0.1, 1.5, math.nan, math.inf])
def test_every_part_refuses_what_is_no_length_in_the_same_words(value: float) -> None:
    assert not is_length(value)
    words = r"a number of steps \(int >= 0\) or a share of the run \(float from 0.0 to 1.0\)"
    with pytest.raises(FieldError, match=rf"schedule.warmup = .*{words}"):
        Schedule(warmup=value)
    with pytest.raises(FieldError, match=rf"sparsity.warmup_steps = .*{words}"):
        Sparsity24(warmup_steps=value)
    with pytest.raises(FieldError, match=rf"objective.freeze_prototypes = .*{words}"):
        ObjectiveConfig(freeze_prototypes=value)

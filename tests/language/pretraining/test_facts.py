"""Generated facts come from the seed alone, and a question is never a training statement."""

from __future__ import annotations

import numpy as np
import pytest

from tenfold.errors import UsageError
from tenfold.language.pretraining.facts import LENGTH, FactWorld

WORLD = FactWorld(entities=50, relations=4, values=16, seed=3, first_token=256)


def seen(world: FactWorld, passes: int) -> set[tuple[int, ...]]:
    """Every statement in some passes over the facts."""
    count = len(world.trained)
    batches = [world.batch(p * count, count, LENGTH) for p in range(passes)]
    return {tuple(row) for row in np.concatenate(batches).tolist()}


def test_the_seed_alone_decides() -> None:
    again, other = FactWorld(50, 4, 16, seed=3, first_token=256), FactWorld(50, 4, 16, seed=4, first_token=256)
    assert np.array_equal(WORLD.batch(40, 3, 20), again.batch(40, 3, 20))
    assert np.array_equal(WORLD.untrained, again.untrained)
    assert not np.array_equal(WORLD.answers, other.answers)
    assert not np.array_equal(WORLD.names, other.names)


def test_a_question_is_in_a_form_that_its_fact_is_never_trained_in() -> None:
    prompts, answers = WORLD.questions(WORLD.trained)
    asked = {(*p, a) for p, a in zip(prompts.tolist(), answers.tolist())}
    statements = seen(WORLD, 30)
    assert not asked & statements
    assert len(statements) == 3 * len(WORLD.trained)  # each fact in its three other forms


def test_every_form_is_trained_with_some_facts_and_every_trained_fact_stands_once_in_a_pass() -> None:
    first_pass = WORLD.batch(0, len(WORLD.trained), LENGTH)
    marks = first_pass - WORLD.first_token
    assert {int(row[(row >= 0) & (row < 4)][0]) for row in marks} == {0, 1, 2, 3}
    assert len({frozenset(row) - {256, 257, 258, 259} for row in first_pass.tolist()}) > 0.95 * len(WORLD.trained)


def test_untrained_facts_never_stand_in_the_stream() -> None:
    statements = seen(WORLD, 5)
    for template in range(4):
        hidden = WORLD.statements(WORLD.untrained, np.full(len(WORLD.untrained), template))
        assert not {tuple(row) for row in hidden.tolist()} & statements
    assert len(WORLD.untrained) == 10
    assert len(WORLD.trained) + len(WORLD.untrained) == WORLD.facts


def test_names_differ_and_tokens_stay_in_the_vocabulary() -> None:
    assert len({tuple(name) for name in WORLD.names.tolist()}) == 50
    tokens = WORLD.batch(0, 200, LENGTH)
    assert tokens.min() >= 256
    assert tokens.max() < WORLD.vocabulary
    assert WORLD.bits == pytest.approx(190 * 4)


def test_the_stream_is_its_position() -> None:
    rows = WORLD.batch(0, 2, 6 * LENGTH)
    assert rows.shape == (2, 36)
    facts = 2 * 6
    later = WORLD.batch(facts, 2, 6 * LENGTH)
    assert not np.array_equal(rows, later)
    assert WORLD.batch(0, 2, 20).shape == (2, 20)


@pytest.mark.parametrize("options", [{"entities": 0}, {"entities": 64**3 + 1}, {"values": 0}, {"floor": 1.0}])
def test_sizes_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="allowed"):
        FactWorld(**options)  # type: ignore[arg-type]

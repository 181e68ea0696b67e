"""Errors: the exit codes of the architecture, messages that say what to do, and a way between processes."""

from __future__ import annotations

import errno
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold import errors
from tenfold.errors import FieldError, MissingExtra, StorageError, TenfoldError, nearest, storage_error, unknown_name

CODES = {
    "UsageError": 2, "FieldError": 2, "MissingExtra": 2, "LockHeld": 2, "DataError": 3, "WeightsError": 4,
    "CheckpointError": 4, "StorageError": 4, "NonFiniteError": 5, "LostRank": 1, "Preempted": 75,
}  # fmt: skip


def family(kind: type[TenfoldError] = TenfoldError) -> set[type[TenfoldError]]:
    below = {k for k in kind.__subclasses__() if k.__module__ == errors.__name__}
    return below.union(*map(family, below)) if below else below


def test_every_error_has_the_exit_code_of_the_architecture() -> None:
    assert {kind.__name__: kind.exit_code for kind in family()} == CODES


def by_name() -> list[type[TenfoldError]]:
    return sorted(family(), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", by_name())
def test_every_error_survives_the_way_from_a_worker_process(kind: type[TenfoldError]) -> None:
    arguments = {MissingExtra: ("av", "faces", "video"), FieldError: ("optim.lr", -1, "a number above 0")}
    error = kind(*arguments.get(kind, ("what happened",)))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.__dict__) == (kind, str(error), error.__dict__)


def test_a_missing_extra_is_the_line_to_type() -> None:
    assert str(MissingExtra("av", "faces")) == 'av is not installed. Type: pip install "tenfold[faces]"'


def test_a_field_is_named_by_where_it_stands() -> None:
    error = FieldError("head.hidden", 0, "a whole number >= 1").under("dino")
    assert str(error) == "dino.hidden = 0: allowed a whole number >= 1."


def test_a_full_disk_says_that_nothing_was_replaced() -> None:
    full = storage_error("a/b", OSError(errno.ENOSPC, "No space left on device"))
    assert isinstance(full, StorageError)
    assert "no space left while writing a/b" in str(full)
    assert "free some space" in str(full)
    assert "Permission denied" in str(storage_error("a/b", OSError(errno.EACCES, "Permission denied")))


@given(st.text(max_size=12), st.lists(st.text(min_size=1, max_size=12), max_size=6))
def test_the_nearest_name_is_one_of_the_allowed(name: str, allowed: list[str]) -> None:
    guess = nearest(name, allowed)
    assert guess is None or guess in allowed
    if name in allowed:
        assert guess == name
    message = str(unknown_name("field", name, allowed))
    assert repr(name) in message
    assert ("Did you mean" in message) == (guess is not None)

"""A configuration goes to JSON and back unchanged, and what does not fit is refused by name."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sample_recipe import Part, Sample, sample
from tenfold.config import config_hash, from_dict, require, spell, to_dict
from tenfold.engine.recipe import TrainerConfig
from tenfold.engine.schedule import OptimConfig, Schedule
from tenfold.errors import FieldError, UsageError
from tenfold.flags import former_flags, parse

schedules = st.builds(
    Schedule,
    kind=st.sampled_from(["constant", "linear", "cosine"]),
    peak=st.floats(-10, 10),
    warmup=st.one_of(st.integers(0, 10**6), st.floats(0, 1)),
    decay=st.one_of(st.none(), st.integers(0, 10**6), st.floats(0, 1)),
)
samples = st.builds(
    Sample,
    first=st.builds(Part, width=st.integers(1, 100), kind=st.sampled_from(["square", "round"])),
    temperature=schedules,
    optim=st.builds(OptimConfig, lr=st.floats(1e-9, 1e3), clip=st.one_of(st.none(), st.floats(0.1, 10))),
    trainer=st.builds(TrainerConfig, steps=st.integers(1, 10**9), tensorboard=st.booleans()),
    limit=st.one_of(st.none(), st.integers(1, 9)),
    path=st.one_of(st.none(), st.just(Path("a/b"))),
    sides=st.lists(st.integers(1, 9), max_size=4).map(tuple),
)


@given(samples)
def test_json_and_back_gives_the_same_configuration_and_hash(config: Sample) -> None:
    again = from_dict(Sample, json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert type(again.temperature.warmup) is type(config.temperature.warmup), "1 is a step and 1.0 the whole run"


def test_a_different_value_gives_a_different_hash() -> None:
    hashes = {config_hash(dataclasses.replace(sample(), batch=batch)) for batch in range(1, 20)}
    assert len(hashes) == 19


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("batch", True, "batch = True: allowed a whole number"),
        ("batch", 2.0, "batch = 2.0: allowed a whole number"),
        ("batch", "2", "batch = '2': allowed a whole number"),
        ("batch", None, "batch = None: allowed a whole number"),
        ("limit", 1.5, "limit = 1.5: allowed a whole number or None"),
        ("limit", True, "limit = True"),
        ("fast", 1, "fast = 1: allowed true or false"),
        ("path", 3, "path = 3: allowed a path or None"),
        ("sides", 3, "sides = 3: allowed any number of values, each a whole number"),
        ("sides", [1, "x"], "sides = 'x': allowed a whole number"),
        ("optim.lr", "fast", "optim.lr = 'fast': allowed a number"),
        ("optim.lr", True, "optim.lr = True: allowed a number"),
        ("optim.lr", math.nan, "optim.lr = nan: allowed a finite number"),
        ("optim.lr", 0, "optim.lr = 0.0: allowed a number above 0"),
        ("optim.betas", [0.9], "optim.betas = [0.9]: allowed 2 values, each a number"),
        ("optim.betas", [0.9, 1.0], "optim.betas = (0.9, 1.0): allowed two numbers in [0, 1)"),
        ("optim.schedule.kind", "cosin", "did you mean 'cosine'?"),
        ("optim.schedule.warmup", 1.5, "optim.schedule.warmup = 1.5: allowed"),
        ("optim.schedule.warmup", True, "optim.schedule.warmup = True"),
        ("second.width", 0, "second.width = 0: allowed a whole number >= 1"),
        ("second", [], "second = []: allowed the fields of Part"),
        ("trainer.stepz", 3, "Did you mean 'steps'"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_its_full_name(place: str, value: Any, said: str) -> None:
    values = to_dict(sample())
    *path, last = place.split(".")
    inner = values
    for part in path:
        inner = inner[part]
    inner[last] = value
    with pytest.raises(UsageError) as raised:
        from_dict(Sample, values)
    assert said in str(raised.value)


def test_an_absent_field_takes_its_default_or_is_asked_for() -> None:
    assert from_dict(Sample, {}) == sample()

    @dataclasses.dataclass(frozen=True)
    class Needs:
        size: int

    with pytest.raises(UsageError, match="Needs lacks its field 'size': a whole number"):
        from_dict(Needs, {})


@given(st.sampled_from([math.nan, math.inf, -math.inf]), st.booleans())
def test_require_never_lets_through_what_is_not_finite(value: float, inside: bool) -> None:
    with pytest.raises(FieldError, match="x = "):
        require(True, "x", (1.0, value) if inside else value, "a number")


@pytest.mark.parametrize("kind", [OptimConfig, TrainerConfig])
def test_every_numeric_field_refuses_a_negative_number(kind: type) -> None:
    """The dataclass itself, as a library user meets it."""
    for field in dataclasses.fields(kind):
        value = getattr(kind(), field.name)
        if isinstance(value, bool) or not isinstance(value, (int, float, tuple)):
            continue
        with pytest.raises(FieldError, match=field.name):
            kind(**{field.name: (-1.0, -1.0) if isinstance(value, tuple) else type(value)(-1)})


def test_types_are_spelt_in_words() -> None:
    assert spell(int | None) == "a whole number or None"
    assert spell(tuple[float, float]) == "2 values, each a number"
    assert spell(Part) == "the fields of Part"


@dataclasses.dataclass(frozen=True)
class Inner:
    renamed: ClassVar = {"amount": "count"}
    count: int = 1
    loud: bool = False


@dataclasses.dataclass(frozen=True)
class Outer:
    renamed: ClassVar = {"part": "inner"}
    inner: Inner = Inner()
    other: int = 2


@dataclasses.dataclass(frozen=True)
class Before:
    """Outer before its fields were renamed."""

    part: Any
    other: int = 2


def test_a_renamed_field_is_read_by_its_former_name_and_keeps_the_hash() -> None:
    config = Outer(Inner(count=5))
    assert from_dict(Outer, {"part": {"amount": 5, "loud": False}, "other": 2}) == config
    assert from_dict(Outer, to_dict(config)) == config
    assert to_dict(config) == {"inner": {"count": 5, "loud": False}, "other": 2}
    assert config_hash(config) == config_hash(Before({"amount": 5, "loud": False}))
    with pytest.raises(UsageError, match="'inner' twice: 'part' is its former name"):
        from_dict(Outer, {"inner": {}, "part": {}})


def test_former_flags_are_taken_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert former_flags(Outer) == {
        "part.amount": "inner.count",
        "part.count": "inner.count",
        "inner.amount": "inner.count",
        "part.loud": "inner.loud",
        "part.no-loud": "inner.no-loud",
    }
    assert parse(Outer, ["--part.amount", "7", "--other=3"], "prog") == Outer(Inner(count=7), 3)
    assert "--part.amount is now --inner.count" in capsys.readouterr().err
    assert parse(Outer, ["--inner.count=8"], "prog", default=Outer()) == Outer(Inner(count=8))
    assert capsys.readouterr().err == ""

"""Flags of the command line: every field has one, words become the values that they spell, and a wrong one is named."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from sample_recipe import Part, Sample, sample
from tenfold.errors import UsageError
from tenfold.flags import flags_of, parse


@dataclass(frozen=True)
class Match:
    """Matches two images."""

    left: tyro.conf.Positional[Path]  # the first
    right: tyro.conf.Positional[Path]  # the second
    top: int = 10  # how many
    kind: Literal["mutual", "ratio"] = "mutual"  # which matches
    size: tuple[int, int] | None = None  # of the picture
    json: bool = False  # print as JSON


@dataclass(frozen=True)
class Needs:
    """Has a flag without a default."""

    train: Path  # a file
    limit: int | None = None


samples = st.builds(
    Sample,
    first=st.builds(Part, width=st.integers(1, 99), kind=st.sampled_from(["square", "round"])),
    batch=st.integers(1, 10**6),
    limit=st.one_of(st.none(), st.integers(1, 9)),
    path=st.one_of(st.none(), st.just(Path("-a/b c"))),
    sides=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    fast=st.booleans(),
)


@settings(max_examples=15, deadline=None)
@given(samples)
def test_words_spell_every_configuration(config: Sample) -> None:
    switch = "--fast" if config.fast else "--no-fast"
    words = ["--first.width", str(config.first.width), f"--first.kind={config.first.kind}", switch]
    words += ["--batch", str(config.batch), "--limit", str(config.limit), f"--path={config.path}"]
    words += ["--sides", *map(str, config.sides)]
    assert parse(Sample, words, "prog", default=sample()) == config


def test_every_field_and_every_field_of_its_parts_has_a_flag_and_words_without_a_flag_have_none() -> None:
    flags = flags_of(Sample)
    assert {"first.width", "second.scale", "temperature.kind", "batch", "trainer.checkpoint-every"} <= flags.keys()
    for field in fields(Part):
        assert f"first.{field.name}" in flags
    assert flags_of(Match).keys() == {"top", "kind", "size", "json"}


def test_words_stand_in_their_places_among_the_flags() -> None:
    config = (tyro.conf.FlagCreatePairsOff,)
    expected = Match(Path("a"), Path("b"), top=3, json=True)
    for words in (
        ["a", "b", "--top", "3", "--json"],
        ["--json", "--top=3", "a", "b"],
        ["a", "--top", "3", "b", "--json"],
    ):
        assert parse(Match, words, "tenfold vision match", config=config) == expected
    assert parse(Match, ["a", "b", "--size", "4", "5"], "prog", config=config).size == (4, 5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a"], "prog lacks right (a path). prog --help explains each."),
        ([], "prog lacks left (a path), right (a path)."),
        (["a", "b", "c"], "'c' has no place in prog."),
        (["a", "b", "--tpo", "3"], "unknown flag --tpo. Did you mean --top?"),
        (["a", "b", "--top"], "--top without a value: allowed is a whole number."),
        (["a", "b", "--top", "three"], "--top three: allowed is a whole number."),
        (["a", "b", "--kind", "mutal"], "--kind mutal: allowed is one of"),
        (["a", "b", "--kind", "mutal"], "Did you mean mutual?"),
        (["a", "b", "--size", "4"], "--size 4"),
    ],
)
def test_a_wrong_word_is_named_with_what_is_allowed(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(Match, words, "prog", config=(tyro.conf.FlagCreatePairsOff,))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flag_that_must_be_given_is_asked_for() -> None:
    with pytest.raises(UsageError, match=r"prog lacks --train \(a path\)"):
        parse(Needs, ["--limit", "3"], "prog")
    assert parse(Needs, ["--train", "a", "--limit", "None"], "prog") == Needs(Path("a"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch", "0"], "batch = 0: allowed a whole number >= 1"),
        (["--second.width", "0"], "second.width = 0: allowed a whole number >= 1"),
        (["--optim.lr", "-1"], "optim.lr = -1.0: allowed a number above 0"),
        (["--fast", "yes"], "--fast is a switch and takes no value"),
        (["--width", "3"], "Did you mean --first.width?"),
        (["--first.scale", "1"], "--first.scale 1: allowed is 2 values, each a number"),
    ],
)
def test_a_value_that_a_configuration_refuses_is_named_by_where_it_stands(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(Sample, words, "prog", default=sample())
    assert said in str(caught.value)


def test_only_what_is_given_changes() -> None:
    start = replace(sample(), batch=77, sides=(5, 6))
    assert parse(Sample, ["--limit", "2"], "prog", default=start) == replace(start, limit=2)


def test_help_names_the_words_and_leaves_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(Match, ["--help"], "prog")
    assert caught.value.code == 0
    page = capsys.readouterr().out
    assert "LEFT RIGHT" in page.splitlines()[0]
    assert "of the picture" in page

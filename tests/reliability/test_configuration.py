"""R19: a wrong name, type or value in any field of any recipe leaves with 2, names the field, what is allowed and the
nearest name, and shows no traceback."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sample_recipe import sample
from tenfold.cli import main
from tenfold.config import from_dict, to_dict
from tenfold.errors import UsageError
from tenfold.flags import flags_of
from tenfold.registry import Registry, recipes

SAMPLE = "sample-recipe"
# Recipes of one wing share their configuration's type, so one of each type is fuzzed by default and the rest at leisure.
FIRST = {"dinov3-mini", "dinov3-distill"}
NAMES = [pytest.param(entry.name, marks=() if entry.name in FIRST else pytest.mark.slow) for entry in recipes] + [
    SAMPLE
]
SIGNED = {"peak", "start", "final", "mean"}  # fields in which a negative number makes sense
quick = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(autouse=True)
def sample_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe of every kind of field that a configuration may have, beside the real ones."""
    table = Registry("recipe")
    for entry in recipes:
        table.add(entry.name, entry.target, entry.summary)
    table.add(SAMPLE, "sample_recipe:sample")
    monkeypatch.setattr("tenfold.training.recipes", table)
    monkeypatch.setattr("tenfold.training.run_recipe", lambda *_, **__: pytest.fail("a run was started"))


def load(name: str) -> Any:
    return sample() if name == SAMPLE else recipes.load(name)()


def refuse(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one message of a command that must leave with 2."""
    capsys.readouterr()
    code = main(["train", *words])
    said = capsys.readouterr()
    assert code == 2, said.err
    assert "Traceback" not in said.err
    assert said.err.startswith("tenfold: ")
    assert said.out == ""
    return said.err


def bare(hint: Any) -> Any:
    return bare(typing.get_args(hint)[0]) if typing.get_origin(hint) is typing.Annotated else hint


def parts(hint: Any) -> set[Any]:
    """The plain types inside a hint."""
    inner = [a for a in typing.get_args(hint) if a is not Ellipsis]
    if typing.get_origin(hint) is typing.Literal:
        return {typing.Literal}
    return set().union(*map(parts, inner)) if inner else {hint}


def arity(value: Any) -> int:
    return len(value) if isinstance(value, tuple) else 1


def default_of(config: Any, flag: str) -> Any:
    for part in flag.replace("-", "_").split("."):
        config = getattr(config, part)
    return config


def fields_with(name: str, *kinds: Any) -> list[str]:
    """Flags whose types are all among `kinds`, at least one of them there besides None; empty tuples have no place for a
    number and are left out."""
    allowed, config = {*kinds, type(None)}, load(name)
    return [
        flag
        for flag, hint in flags_of(type(config)).items()
        if parts(bare(hint)) <= allowed and parts(bare(hint)) & set(kinds) and default_of(config, flag) != ()
    ]


@pytest.mark.parametrize("name", NAMES)
@quick
@given(data=st.data())
def test_a_misspelt_flag_names_the_nearest(name: str, data: st.DataObject, capsys: pytest.CaptureFixture[str]) -> None:
    flags = flags_of(type(load(name)))
    flag = data.draw(st.sampled_from(sorted(flags)))
    place = data.draw(st.integers(1, len(flag) - 1))
    wrong = data.draw(
        st.sampled_from([flag[:place] + flag[place + 1 :], flag + "x", flag[:place] + "q" + flag[place:]])
    )
    if wrong in flags or wrong.startswith("-") or len(wrong) < 3 or f"{wrong}" in ("out", "help"):
        return
    said = refuse(capsys, name, f"--{wrong}", "1")
    assert f"unknown flag --{wrong}." in said
    guess = said.partition("Did you mean --")[2].partition("?")[0]
    assert guess in flags or guess == "out"


@pytest.mark.parametrize("name", NAMES)
@quick
@given(data=st.data(), word=st.text(st.characters(categories=["L"]), min_size=1, max_size=8))
def test_a_wrong_type_names_the_field_and_what_is_allowed(
    name: str, data: st.DataObject, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if word.lower() in ("inf", "nan", "none", "infinity"):
        return
    config = load(name)
    flag = data.draw(st.sampled_from(fields_with(name, int, float, typing.Literal)))
    count = max(1, arity(default_of(config, flag)))
    said = refuse(capsys, name, f"--{flag}", *[word] * count)
    assert f"--{flag} {word}" in said
    assert "allowed is " in said
    assert any(kind in said for kind in ("number", "one of"))


def with_number(config: Any, flag: str, number: float) -> Any:
    """The configuration built anew with `number` in every place of a numeric field, as the command line builds it."""
    values = to_dict(config)
    *path, last = flag.replace("-", "_").split(".")
    inner = functools.reduce(lambda place, part: place[part], path, values)
    inner[last] = [number] * len(inner[last]) if isinstance(inner[last], list) else number
    return from_dict(type(config), values)


@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinity_are_refused_in_every_numeric_field(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = load(name)
    flags = [f for f in fields_with(name, int, float) if float in parts(flags_of(type(config))[f])]
    for flag, bad in itertools.product(flags, (math.nan, math.inf, -math.inf)):
        with pytest.raises(UsageError, match=rf"{flag.replace('-', '_')} = .*(nan|inf).*: allowed "):
            with_number(config, flag, bad)
    for flag in flags[::7]:
        said = refuse(capsys, name, f"--{flag}", *["nan"] * arity(default_of(config, flag)))
        assert flag.replace("-", "_") in said


@pytest.mark.parametrize("name", NAMES)
def test_a_negative_number_is_refused_where_it_makes_no_sense(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = load(name)
    flags = [f for f in fields_with(name, int, float) if f.rpartition(".")[2] not in SIGNED]
    accepted = []
    for flag in flags:
        with contextlib.suppress(UsageError):
            with_number(config, flag, -3 if int in parts(flags_of(type(config))[flag]) else -3.0)
            accepted.append(flag)
    assert not accepted, f"these fields take -3: {', '.join(accepted)}"
    for flag in flags[::7]:
        said = refuse(capsys, name, f"--{flag}", *["-3"] * arity(default_of(config, flag)))
        assert flag.replace("-", "_") in said
        assert "allowed" in said


@pytest.mark.parametrize("name", NAMES)
@quick
@given(data=st.data())
def test_a_value_too_few_and_a_flag_without_a_value_are_named(
    name: str, data: st.DataObject, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(name)
    hints = flags_of(type(config))
    fixed = [f for f in fields_with(name, int, float, typing.Literal) if Ellipsis not in typing.get_args(hints[f])]
    flag = data.draw(st.sampled_from(fixed))
    assert f"--{flag} without a value: allowed is" in refuse(capsys, name, f"--{flag}")
    if arity(default_of(config, flag)) > 1:
        assert f"{arity(default_of(config, flag))} values" in refuse(capsys, name, f"--{flag}", "1")


@pytest.mark.parametrize("name", NAMES)
def test_help_gives_every_field_its_meaning(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", name, "--help"]) == 0
    page = capsys.readouterr().out
    for flag in flags_of(type(load(name))):
        assert f"--{flag}" in page
    text = " ".join(page.replace("│", " ").split())
    assert "--optim.lr FLOAT peak learning rate (default:" in text
    assert "--out" in text


def test_switches_and_stray_words_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert "is a switch" in refuse(capsys, SAMPLE, "--trainer.tensorboard", "maybe")
    assert "'word' has no place" in refuse(capsys, SAMPLE, "word")
    assert "Did you mean --optim.lr?" in refuse(capsys, SAMPLE, "--lr", "1")
    assert "comes before the recipe" in refuse(capsys, "--optim.lr", "1")
    assert f"Did you mean '{SAMPLE}'" in refuse(capsys, SAMPLE[:-1])


def test_the_field_of_a_shared_dataclass_is_named_by_where_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    assert "second.width = 0: allowed" in refuse(capsys, SAMPLE, "--second.width", "0")
    assert "optim.schedule.warmup = 1.5: allowed" in refuse(capsys, SAMPLE, "--optim.schedule.warmup", "1.5")


def test_a_real_process_leaves_with_2_and_one_line(tmp_path: Path) -> None:
    name = next(iter(recipes)).name
    words = [sys.executable, "-m", "tenfold", "train", name, "--optim.lr", "fast"]
    result = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ})
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "tenfold: --optim.lr fast: allowed is a number.\n"

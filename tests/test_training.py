"""`tenfold train`: a run folder goes on with its own configuration, and one that does not fit is refused with 4."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sample_recipe import Sample, sample
from tenfold import training
from tenfold.cli import main
from tenfold.config import to_dict
from tenfold.errors import CheckpointError, UsageError
from tenfold.registry import Registry, recipes
from tenfold.training import reopen, run_recipe

SAMPLE = "sample-recipe"


@pytest.fixture(autouse=True)
def sample_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipes, and one with every kind of field that a configuration may have."""
    table = Registry("recipe")
    for entry in recipes:
        table.add(entry.name, entry.target, entry.summary)
    table.add(SAMPLE, "sample_recipe:sample", "every kind of field")
    monkeypatch.setattr(training, "recipes", table)


def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The runs that are started from now on, in place of the runs themselves."""
    runs: list[tuple[Any, ...]] = []

    def note(name: str, recipe: Any, out: Path, resume: bool = False) -> dict[str, Any]:
        runs.append((name, recipe, out, resume))
        return {"loss": 1.5}

    monkeypatch.setattr(training, "run_recipe", note)
    return runs


def saved(**changes: Any) -> dict[str, Any]:
    return {"recipe": SAMPLE, "version": "9.9", "config": to_dict(sample()), **changes}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[1, 2]", "needs `recipe` and `config`"),
        (b'{"recipe": "x"}', "needs `recipe` and `config`"),
        (saved(recipe=["x"]), "unknown recipe"),
        (saved(recipe="sample-recip"), f"Did you mean '{SAMPLE}'"),
        (saved(config=3), "allowed the fields of"),
        (saved(config={**to_dict(sample()), "batches": 3}), "Did you mean 'batch'"),
        (saved(config={**to_dict(sample()), "batch": True}), "batch = True: allowed a whole number"),
        (saved(config={**to_dict(sample()), "trainer": {"stepz": 3}}), "unknown field of trainer 'stepz'"),
        (saved(config={**to_dict(sample()), "optim": {"lr": -1}}), "optim.lr = -1.0: allowed a number above 0"),
    ],
)
def test_a_run_folder_of_another_version_or_damaged_leaves_with_4(
    content: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    assert main(["train", "--resume", str(tmp_path)]) == 4
    message = capsys.readouterr().err
    assert said in message
    assert str(path) in message
    assert "Traceback" not in message
    if isinstance(content, dict):
        assert "written by 9.9" in message


def test_a_folder_reopens_to_the_configuration_that_was_saved(tmp_path: Path) -> None:
    config = replace(sample(), path=Path("a/b"), sides=(1, 2, 3))
    (tmp_path / "config.json").write_text(json.dumps(saved(config=to_dict(config))))
    assert reopen(tmp_path) == (SAMPLE, config)


def test_flags_change_the_recipe_and_out_is_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = started(monkeypatch)
    assert main(["train", SAMPLE, "--batch", "3", "--second.kind", "round", "--out", str(tmp_path)]) == 0
    expected = replace(sample(), batch=3, second=replace(sample().second, kind="round"))
    assert runs == [(SAMPLE, expected, tmp_path, False)]
    assert type(runs[0][1]) is Sample
    assert json.loads(capsys.readouterr().out) == {"run": str(tmp_path), "loss": 1.5}
    assert main(["train", SAMPLE]) == 0
    assert runs[1:] == [(SAMPLE, sample(), Path("runs") / SAMPLE, False)]


def test_a_run_goes_on_with_its_own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, config = started(monkeypatch), replace(sample(), batch=5)
    (tmp_path / "config.json").write_text(json.dumps(saved(config=to_dict(config))))
    assert main(["train", "--resume", str(tmp_path)]) == 0
    assert runs == [(SAMPLE, config, tmp_path, True)]


def test_only_the_first_rank_prints_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started(monkeypatch)
    monkeypatch.setenv("RANK", "1")
    assert main(["train", SAMPLE, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""


def test_a_folder_that_holds_a_run_is_not_trained_into(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=rf"holds a run already\. Continue it: tenfold train --resume {tmp_path}"):
        run_recipe(SAMPLE, sample(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_folder_that_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a run folder: it has no config\.json"):
        reopen(tmp_path)


def test_a_size_is_one_of_the_recipe_s_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    runs = started(monkeypatch)
    assert main(["train", "lm-swiglu-dense", "--size", "tinny"]) == 2
    assert "unknown size of lm-swiglu-dense 'tinny'. Did you mean 'tiny'?" in capsys.readouterr().err
    assert main(["train", SAMPLE, "--size", "tiny"]) == 2
    assert f"{SAMPLE} has one size" in capsys.readouterr().err
    assert runs == []
    assert main(["train", "lm-swiglu-dense", "--size=tiny"]) == 0
    assert runs[0][1] == recipes.load("lm-swiglu-dense")(size="tiny")


def test_without_a_recipe_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 0
    page = capsys.readouterr().out
    assert all(f"  {entry.name} " in page for entry in recipes)

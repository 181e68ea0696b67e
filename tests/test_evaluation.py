"""`tenfold eval --report`: the scores as a page, with every baseline in the table of the weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import tyro

from tenfold import evaluation
from tenfold.cli import main
from tenfold.evaluation import TASKS, evaluation_report
from tenfold.registry import Registry


@dataclasses.dataclass(frozen=True)
class Options:
    """Scores something."""

    weights: tyro.conf.Positional[Path]  # what is scored
    limit: int = 3  # use only so many rows
    json: bool = False  # print as JSON


def score(options: Options) -> dict[str, Any]:
    return {"rows": options.limit, "k-NN 10, these weights": 60.0, "k-NN 10, raw pixels": 37.25, "text": "3 of 3"}


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = Registry("evaluation")
    tasks.add("toy", f"{__name__}:score", "a toy")
    monkeypatch.setattr(evaluation, "TASKS", tasks)
    monkeypatch.setattr(tasks, "load", lambda name: score)


@pytest.mark.usefixtures("task")
def test_the_report_has_what_is_printed_and_baselines_beside_the_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "toy", "w", "--limit", "5", "--json", "--report", str(tmp_path / "page")]) == 0
    printed = json.loads(capsys.readouterr().out)
    parts = json.loads((tmp_path / "page/report.json").read_text())["parts"]
    tables = {part["title"]: part["rows"] for part in parts}
    assert printed["rows"] == 5
    assert tables["scores"] == [
        {"features": "these weights", "k-NN 10": 60.0},
        {"features": "raw pixels", "k-NN 10": 37.25},
    ]
    assert tables["figures"] == [{"figure": "rows", "value": 5}]
    assert tables["in words"] == [{"what": "text", "result": "3 of 3"}]
    assert "tenfold eval toy w --limit 5" in (tmp_path / "page/report.html").read_text()


@pytest.mark.usefixtures("task")
def test_without_the_flag_nothing_is_written_and_numbers_are_to_the_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "toy", "w"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert list(tmp_path.iterdir()) == []
    assert {len(line) for line in lines} == {53}


def test_help_explains_the_tasks_own_flags_and_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "knn", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "a backbone that tenfold.load reads" in words
    assert "also write report.html" in words
    assert len(list(TASKS)) > 10


def test_every_figure_of_a_result_is_in_the_report() -> None:
    result = {"accuracy, %": 61.0, "accuracy, %, baseline (chance)": 50.0, "pairs": "670", "  anaphora": 80.0}
    report = evaluation_report("blimp", result)
    values = [value for part in report.parts for row in part["rows"] for value in row.values()]
    assert {61.0, 50.0, "670", 80.0} <= set(values)

"""`tenfold language memory` and `tenfold eval facts | factbook`: figures of a real run, and folders that are no run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tenfold
from language.memory_runs import SMALL, words
from needed import package
from tenfold.cli import main
from tenfold.errors import CheckpointError
from tenfold.language.memory_commands import Memory, examine, open_run


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return words(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory") / "run"
    assert main(["train", "lm-memory-plus", "--out", str(path), "--data", str(text), *SMALL]) == 0
    return path


def test_figures_of_use_are_shares_and_the_most_read_come_first(run: Path) -> None:
    found = examine(Memory(run, prompt="fox", top=4))
    shares = [share for _, share in found["most read"]]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 1
    assert 0 <= found["divergence"] <= found["largest"] == pytest.approx(np.log(found["slots"]))
    for row in found["prompt"]:
        weights = [weight for _, weight in row["slots"]]
        assert len(weights) == 4
        assert weights == sorted(weights, reverse=True)


def test_an_empty_prompt_and_another_kind_of_facts_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["language", "memory", str(run), "--prompt", ""]) == 2
    assert "--prompt is empty" in capsys.readouterr().err
    assert main(["eval", "factbook", str(run)]) == 2
    assert "was not trained on real facts" in capsys.readouterr().err
    pa, pq = package("pyarrow"), package("pyarrow.parquet")
    rows = [("land", "capital", "Rome")]
    pq.write_table(pa.table(dict(zip(("entity", "field", "text"), zip(*rows)))), tmp_path / "facts.parquet")
    assert main(["eval", "factbook", str(run), "--val", str(tmp_path / "facts.parquet")]) == 3
    assert "leave none to train on" in capsys.readouterr().err


def test_train_evaluate_and_look_into_the_table(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", "lm-memory-plus", "--out", str(run), "--data", str(text), *SMALL]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert 0 < trained["nats_per_byte"] < 7
    assert {"facts_recall", "facts_floor"} <= set(trained)
    assert main(["eval", "facts", str(run), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["recall"] == pytest.approx(trained["facts_recall"], abs=15)
    assert scores["facts trained"] == 152
    assert main(["language", "memory", str(run), "--json", "--prompt", "fox", "--top", "3"]) == 0
    usage = json.loads(capsys.readouterr().out)
    assert usage["slots"] == 256
    assert 0 < usage["coverage"] <= 1
    assert [row["token"] for row in usage["prompt"]] == ["f", "o", "x"]
    model, recipe = open_run(run)
    assert model.config.memory_side == recipe.model.memory_side == 16
    loaded: Any = tenfold.load(run)
    assert loaded.memory.values.equal(model.memory.values)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text('{"recipe": "x", "config": {"widt": 3}}')
    with pytest.raises(CheckpointError, match="not a run of a language model"):
        open_run(tmp_path)

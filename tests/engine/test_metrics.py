"""The log holds one line per logged step, whatever happened to its writer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tenfold.engine.metrics import Metrics, read_rows


def test_lines_of_steps_that_run_again_and_a_torn_line_are_dropped(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, total=10)
    for step in range(1, 6):
        metrics.log(step, {"loss": 1 / step})
    with metrics.path.open("a") as file:
        file.write('{"step": 6, "lo')
    again = Metrics(tmp_path, total=10)
    again.keep_until(3)
    again.log(4, {"loss": 0.0})
    assert [row["step"] for row in read_rows(again.path)] == [1, 2, 3, 4]
    assert read_rows(again.path)[2]["loss"] == 1 / 3


def test_a_number_that_is_not_finite_keeps_the_line_json(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, total=1)
    metrics.log(1, {"loss": float("nan")})
    assert json.loads(metrics.path.read_text(), parse_constant=pytest.fail)["loss"] == "nan"


def test_progress_without_a_terminal_is_plain_lines_with_rate_and_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenfold.engine.metrics.PLAIN_EVERY", 0.0)
    metrics = Metrics(tmp_path, total=4)
    for step in (1, 2):
        metrics.advance(step, loss=2.5)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("step 2/4  loss 2.5")
    assert "steps/s" in line
    assert "min left" in line


def test_tensorboard_gets_the_same_figures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = Metrics(tmp_path, total=2, tensorboard=True)
    metrics.log(1, {"loss": 0.5})
    metrics.log(2, {"loss": 0.25})
    metrics.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]

"""Long work says how far it is, and passes everything on."""

from __future__ import annotations

import re

import pytest

from tenfold.data import progress


def test_every_item_passes_and_a_plain_line_has_count_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 4))  # four seconds an item
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(progress.track(range(10), "decoding", 10)) == list(range(10))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 3
    assert all(re.fullmatch(r"decoding: \d+ of 10, 0\.\d\d/s, (in )?\d:\d\d( left)?", line) for line in lines)
    counts = [int(line.split()[1]) for line in lines]
    assert counts == sorted(counts)
    assert lines[-1].startswith("decoding: 10 of 10")


def test_short_work_says_nothing_when_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track(range(3), "decoding", 3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(progress.track(range(3), "decoding", 3)) == [0, 1, 2]
    assert "decoding" in capsys.readouterr().err

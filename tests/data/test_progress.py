"""Long work says how far it is, and passes everything on."""

from __future__ import annotations

import pytest

from tenfold.data import progress


def test_every_item_passes_and_a_plain_line_has_count_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 4))  # four seconds an item
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    assert list(progress.track(range(10), "decoding", 10)) == list(range(10))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "decoding: 3 of 10, 0.25/s, 28 s left",
        "decoding: 6 of 10, 0.25/s, 16 s left",
        "decoding: 9 of 10, 0.25/s, 4 s left",
    ]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(progress.track(range(3), "decoding", 3)) == [0, 1, 2]
    assert "decoding" in capsys.readouterr().err

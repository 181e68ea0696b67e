"""What the speculative benchmark says follows from what was measured, and a peer that is not there is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tenfold.bench.peers import openvino_missing
from tenfold.bench.speculative import Answered, Measured, marks, measure, run
from tenfold.errors import UsageError


def sides(**ms: float) -> dict[str, Measured]:
    """Two answers of ten tokens for each side, at these milliseconds a token."""
    return {
        name: Measured([Answered(list(range(10)), value * 10 / 1e3, 1.0) for _ in range(2)])
        for name, value in ms.items()
    }


def test_ratios_are_taken_against_the_peer_that_is_named() -> None:
    names = {
        "alone": 16.0,
        "prompt lookup": 12.0,
        "drafter and prompt lookup": 8.0,
        "alone, int4": 7.0,
        "transformers": 48.0,
    }
    found = sides(**names, **{"drafter and prompt lookup, int4": 5.0, "OpenVINO GenAI": 10.0})
    found["prompt lookup"].answers[0].ids[3] = 99
    said = "\n".join(marks("sums", found))
    assert "alone is 3.00 (3.00 to 3.00) times transformers" in said
    assert "drafter and prompt lookup is 2.00 (2.00 to 2.00) times alone, 2.00 over all tokens." in said
    assert "drafter and prompt lookup, int4 is 1.40 (1.40 to 1.40) times alone, int4, 1.40 over" in said
    assert "drafter and prompt lookup, int4 is 2.00 (2.00 to 2.00) times OpenVINO GenAI, 2.00 over" in said
    assert "prompt lookup wrote 1 of 2 answers like the target alone" in said
    assert "drafter and prompt lookup wrote 2 of 2" in said


def test_long_answers_weigh_more_over_all_tokens() -> None:
    short, long = Answered([0] * 10, 0.1, 0.4), Answered([0] * 30, 0.6, 0.6)
    measured = Measured([short, long])
    assert measured.whole == pytest.approx(1e3 * 0.7 / 40)
    measured.clock = "wall"
    assert measured.ms() == [40.0, 20.0]
    assert measured.whole == 25.0


def test_sides_take_turns_and_the_first_answers_do_not_count() -> None:
    order: list[str] = []

    def side(name: str):
        def answer(prompt: list[int]) -> Answered:
            order.append(f"{name}{prompt[0]}")
            return Answered([1, 2], 0.1, 0.2)

        return answer

    found = measure([[1], [2]], {"a": side("a"), "b": side("b")}, rounds=2)
    assert order == ["a1", "b1", *["a1", "b1", "a2", "b2"] * 2]
    assert [len(m.answers) for m in found.values()] == [4, 4]
    assert found["a"].ms() == [50.0] * 4


def test_a_peer_that_is_not_there_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENFOLD_PEERS", str(tmp_path))
    assert "make peers" in str(openvino_missing())
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    assert "no openvino-genai" in str(openvino_missing())


def test_an_unknown_peer_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UsageError, match="openvino"):
        run(peers=("openvin",))

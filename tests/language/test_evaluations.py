"""`tenfold eval speculative`: figures of every file beside their baselines, and text that stays the target's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from language.small_pair import counting_pair
from tenfold.errors import UsageError
from tenfold.language.evaluations import SpeculativeTask, by_length, speculative


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return counting_pair(tmp_path_factory.mktemp("pair"))


def test_every_file_has_figures_beside_the_baselines_and_the_text_stays(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    for name, count in (("a", 2), ("b", 1)):
        rows = [json.dumps({"prompt": f"{name} {i}"}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    found = speculative(SpeculativeTask(pair[1], tmp_path, target=str(pair[0]), limit=1))
    for name in "ab":
        assert found[f"{name}/answers"] == 1
        assert found[f"{name}/TPC no drafter (baseline)"] == 1
        assert found[f"{name}/same text as without a drafter"].startswith("1 of 1 in ")
        # The replay and the engine count the same calls of the same answer: 8 tokens, the end among them.
        replayed, counted = (found[f"{name}/{kind} tree 16, all answers"] for kind in ("TPC", "engine TPC"))
        assert replayed == pytest.approx(counted)


def test_a_folder_without_prompts_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the folder holds no \.jsonl files"):
        speculative(SpeculativeTask(pair[1], tmp_path, target=str(pair[0])))


def test_lengths_beyond_the_text_or_the_context_say_what_is_allowed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("abcd " * 100)
    options = {"weights": pair[1], "val": tmp_path / "t.txt", "target": str(pair[0]), "limit": 2}
    found = by_length(SpeculativeTask(**options, lengths=(8, 32)))
    assert found["places"] == 2
    assert all(found[f"engine TPC tree 16 behind {length} tokens, all answers"] >= 1 for length in (8, 32))
    with pytest.raises(UsageError, match="allowed are 2 to 172 tokens here"):
        by_length(SpeculativeTask(**options, lengths=(8, 173)))

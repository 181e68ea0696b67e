"""Rounds of rollouts are a function of seed and number, are kept and read again, and never score what they train on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tenfold.config import FieldError
from tenfold.errors import DataError, UsageError
from tenfold.language.distillation.rollout_rounds import RANDOM, RolloutConfig, RolloutRounds
from tenfold.language.distillation.rollouts import Rollout
from tenfold.language.models.text import ByteVocabulary

SMALL = RolloutConfig(round_size=12, max_tokens=8, writers=6, held_back=2)


def texts(rollouts: list[Rollout]) -> list[list[int]]:
    return [rollout.tokens.tolist() for rollout in rollouts]


def test_a_round_is_the_same_for_its_seed_and_number_and_stored_ones_are_read_again(tmp_path: Path) -> None:
    rounds = RolloutRounds(dataclasses.replace(SMALL, keep=tmp_path), RANDOM, None, seed=5)
    held_back, first, second = rounds.held_back["held_back"], rounds.round(0), rounds.round(1)
    assert texts(rounds.round(0)) == texts(first) != texts(second)
    assert len(held_back) == 2
    assert all(rollout.temperature == 0 for rollout in held_back)
    assert not {tuple(text) for text in texts(held_back)} & {tuple(text) for text in texts(first)}
    stored = RolloutRounds(dataclasses.replace(SMALL, stored=tmp_path), RANDOM, None, seed=99)
    assert [texts(stored.round(i)) for i in range(2)] == [texts(first), texts(second)]
    assert texts(stored.held_back["held_back"]) == texts(held_back)
    assert len(stored.sample()) == len(held_back) + len(first) + len(second)


def test_another_seed_writes_other_rollouts() -> None:
    one, other = (RolloutRounds(SMALL, RANDOM, None, seed=seed) for seed in (0, 1))
    assert texts(one.round(0)) != texts(other.round(0))
    assert one.fingerprint == other.fingerprint


def test_a_folder_without_rollouts_is_refused(tmp_path: Path) -> None:
    rounds = RolloutRounds(dataclasses.replace(SMALL, stored=tmp_path), RANDOM, None, seed=0)
    with pytest.raises(DataError, match=r"holds no rollouts \(\*\.safetensors\)"):
        rounds.round(0)


@pytest.mark.parametrize(
    "changes", [{"reuse": 0}, {"max_tokens": 7}, {"behind": (9, 8)}, {"kept_rows": 1}, {"skip_last": -1}], ids=str
)
def test_a_field_out_of_bounds_names_itself(changes: dict[str, Any]) -> None:
    with pytest.raises(FieldError, match=f"rollouts.{next(iter(changes))} = "):
        RolloutConfig(**changes)


def test_passages_are_pieces_of_the_text_of_the_lengths_that_were_asked_for(tmp_path: Path) -> None:
    text = "".join(f"{i} " for i in range(4000))
    (tmp_path / "long.txt").write_text(text)
    config = RolloutConfig(texts=tmp_path / "long.txt", behind=(16, 512))
    rounds = RolloutRounds(config, "random-tiny", None, seed=0)
    vars(rounds)["tokenizer"] = ByteVocabulary()
    found = rounds._passages(200, torch.Generator().manual_seed(1))
    assert found == rounds._passages(200, torch.Generator().manual_seed(1))
    assert all(bytes(p).decode() in text for p in found)
    lengths = sorted(len(p) for p in found)
    assert 16 <= lengths[0] < 24
    assert 340 < lengths[-1] <= 512
    assert 60 < lengths[100] < 135  # the middle one of a uniform logarithm: 90
    long = RolloutRounds(dataclasses.replace(config, behind=(16, 10**6)), "random-tiny", None, seed=0)
    vars(long)["tokenizer"] = ByteVocabulary()
    with pytest.raises(UsageError, match=r"rollouts\.behind = 16 1000000: allowed are 2 to"):
        long.round(0)

"""Decontamination: benchmark prompts are refused however they are written, and others are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.errors import DataError
from tenfold.language.distillation.benchmark_prompts import (
    benchmark_hashes,
    is_benchmark,
    prompt_hash,
    refuse_benchmarks,
)
from tenfold.language.distillation.rollout_rounds import RolloutConfig, RolloutRounds
from tenfold.language.models.text import ByteVocabulary
from tenfold.language.models.tokenizer import read_prompts

WORDS = st.lists(st.text("abcxyz123?", min_size=1), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(WORDS, WORDS, st.lists(st.sampled_from([" ", "  ", "\n", "\t \n"]), min_size=6, max_size=6))
def test_a_hash_is_of_the_words_only(words: list[str], others: list[str], spaces: list[str]) -> None:
    spread = "".join(word.upper() + space for word, space in zip(words, spaces))
    assert prompt_hash("  " + spread) == prompt_hash(" ".join(words))
    assert (prompt_hash(" ".join(others)) == prompt_hash(" ".join(words))) == (others == words)


def test_prompts_that_are_no_benchmark_s_pass() -> None:
    refuse_benchmarks(["What is two and two?", ""], "here")


def test_benchmark_prompts_are_refused_however_they_are_spaced(test_data: Path, tmp_path: Path) -> None:
    shipped = [p for f in sorted((test_data / "text/prompts").glob("*.jsonl")) for p in read_prompts(f)]
    assert len(shipped) == 320
    assert all(is_benchmark(p) for p in shipped)
    assert len(benchmark_hashes()) == 400
    with pytest.raises(DataError, match="benchmark"):
        refuse_benchmarks(["What is two and two?", shipped[7].upper().replace(" ", "  ")], "here")
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "fine"}) + "\n" + json.dumps({"turns": [shipped[0]]}) + "\n")
    rounds = RolloutRounds(RolloutConfig(prompts=path, skip_last=0), "random-tiny", None, seed=0)
    vars(rounds)["tokenizer"] = ByteVocabulary()  # the random target has none, and draws its prompts
    with pytest.raises(DataError, match="benchmark"):
        rounds.round(0)
    train = read_prompts(test_data / "text/gsm8k_train.jsonl.gz")
    assert len(train) == 7473
    assert not any(prompt_hash(p) in benchmark_hashes() for p in train)

"""Evaluation of language models: nats per byte by their definition, pairs and questions beside their baselines."""

from __future__ import annotations

import gzip
import json
import math
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from needed import package
from tenfold.data.tensors import save_own
from tenfold.errors import DataError, UsageError
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.language_model import LanguageModel, LanguageModelConfig
from tenfold.language.models.text import END
from tenfold.language.pretraining.evaluate_text import (
    Pairs,
    Questions,
    Text,
    blimp,
    log_likelihoods,
    nats_per_byte,
    normal,
    nq,
    open_model,
    read_questions,
    text,
    unigram_floor,
)


class Follows(nn.Module):
    """Gives the token after t the probability e^3 times that of any other where it is t + 1."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> types.SimpleNamespace:
        return types.SimpleNamespace(logits=3.0 * nn.functional.one_hot((tokens + 1) % 16, 16).float())


TOTAL = math.log(math.exp(3) + 15)


@pytest.mark.parametrize("length", [1, 4, 7])
def test_nats_are_the_surprise_of_all_predicted_tokens_over_their_bytes(length: int) -> None:
    tokens = torch.tensor([0, 1, 2, 5, 6, 7, 8, 0, 1, 1, 2, 3, 4, 5, 6])
    widths = np.arange(1, 17)
    count = (len(tokens) - 1) // length * length
    pairs = list(zip(tokens[:count].tolist(), tokens[1 : count + 1].tolist()))
    nats = sum(TOTAL - 3.0 * (b == a + 1) for a, b in pairs)
    expected = nats / sum(int(widths[b]) for _, b in pairs)
    assert nats_per_byte(Follows(), tokens, widths, length) == pytest.approx(expected, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.lists(st.integers(0, 3), min_size=1, max_size=10))
def test_the_baseline_is_the_surprise_under_the_frequencies(train: list[int], held_back: list[int]) -> None:
    chance = {token: (train.count(token) + 1) / (len(train) + 4) for token in range(4)}
    widths = np.array([1, 2, 3, 1])
    expected = -sum(math.log(chance[t]) for t in held_back) / sum(int(widths[t]) for t in held_back)
    assert unigram_floor(np.array(train), np.array(held_back), widths) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("said", "same"),
    [("The  Beatles!", "beatles"), ("an apple, a day", "apple day"), ("theatre", "theatre"), ("A.", "")],
)
def test_answers_are_compared_without_case_articles_and_punctuation(said: str, same: str) -> None:
    assert normal(said) == same
    assert normal(normal(said)) == same


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(LlamaConfig(256, 16, 24, 1, heads=2, kv_heads=2, context=16, tied=True)))
    for parameter in model.parameters():
        nn.init.normal_(parameter, float(parameter.ndim == 1), 0.3)
    path = tmp_path_factory.mktemp("run") / "final.safetensors"
    return save_own(path, model.state_dict(), "language-model", model.settings)


def test_a_sentence_s_likelihood_does_not_depend_on_the_longer_one_beside_it(run: Path) -> None:
    model = open_model(run)
    sentences = ["ab", "a much longer sentence", ""]
    found = log_likelihoods(model, sentences)
    for sentence, likelihood in zip(sentences, found.tolist()):
        ids = torch.tensor([[END, *sentence.encode(), END]])
        chances = model(ids[:, :-1]).logits[0].log_softmax(-1)
        assert likelihood == pytest.approx(float(chances.gather(-1, ids[0, 1:, None]).detach().sum()), rel=1e-4)


def test_pairs_are_scored_by_term_and_spread_over_the_file(run: Path, tmp_path: Path) -> None:
    pa, pq = package("pyarrow"), package("pyarrow.parquet")
    rows = {"good": ["aa", "ab"] * 6, "bad": ["ba", "ab"] * 6, "term": ["x", "y"] * 6}
    pq.write_table(pa.table(rows), tmp_path / "pairs.parquet")
    found = blimp(Pairs(run, tmp_path / "pairs.parquet"))
    first, second = log_likelihoods(open_model(run), ["aa", "ba"]).tolist()
    assert found["  x"] == 100 * (first > second)
    assert found["  y"] == 0  # equal sentences: none is likelier
    assert found["accuracy, %"] == pytest.approx(found["  x"] / 2)
    assert blimp(Pairs(run, tmp_path / "pairs.parquet", limit=4))["pairs"] == "4"


def test_questions_are_scored_beside_the_most_common_answer(run: Path, tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": ["Rome", "the Rome"]}, {"question": "r", "answer": ["Paris", "rome"]}]
    with gzip.open(tmp_path / "q.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    assert read_questions(tmp_path / "q.jsonl.gz") == [(row["question"], row["answer"]) for row in rows]
    found = nq(Questions(run, tmp_path / "q.jsonl.gz"))
    assert found["exact match, %, baseline (always 'rome')"] >= found["exact match, %"] == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"question": "q", "answer": ["a"]}\n{"question": "q"}\n', "line 2: expected"),
        ("[1]\n", "line 1: expected"),
        ("", "holds no questions"),
    ],
)
def test_a_file_that_is_no_questions_is_refused_by_its_line(tmp_path: Path, data: str, message: str) -> None:
    (tmp_path / "q.jsonl").write_text(data)
    with pytest.raises(DataError, match=message):
        read_questions(tmp_path / "q.jsonl")


def test_a_text_shorter_than_the_context_and_another_model_are_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(DataError, match="more than the context of 16 are needed"):
        text(Text(run, tmp_path / "short.txt"))
    with pytest.raises(UsageError, match="a Llama; this is for language models"):
        from language.engine_models import tiny_llama

        other = tiny_llama()
        open_model(save_own(tmp_path / "llama.safetensors", other.state_dict(), "llama", other.config))

"""The factbook protocol on the real factbook, and scores that a perfect and an ignorant model must get."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tenfold.data.samples import fetch
from tenfold.errors import DataError
from tenfold.language.pretraining.fact_eval import as_bytes, score_book
from tenfold.language.pretraining.factbook import (
    TEMPLATES,
    Fact,
    FactBook,
    common,
    label,
    read_countries,
    read_factbook,
)


@pytest.fixture(scope="module")
def facts(test_data: Path) -> list[Fact]:
    return common(read_factbook(test_data / "text_qa/factbook.parquet"))


def small(count: int = 300) -> FactBook:
    return FactBook([Fact(f"land {i % 60}", f"field {i // 60}", f"answer {i % 17}") for i in range(count)], floor=0.2)


class Knows(nn.Module):
    """Predicts the text of its statements byte for byte, and a space where it knows nothing."""

    def __init__(self, statements: list[str]) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        self.statements = [s.encode() for s in statements]

    def forward(self, tokens: Tensor) -> types.SimpleNamespace:
        logits = torch.zeros(*tokens.shape, 256)
        logits[..., 32] = 1.0
        for row, ids in enumerate(tokens.tolist()):
            for at in range(1, len(ids) + 1):
                told = bytes(ids[:at])
                found = next((s for s in self.statements if len(s) > at and s.startswith(told)), None)
                if found is not None:
                    logits[row, at - 1, found[at]] = 20.0
        return types.SimpleNamespace(logits=logits)


def test_the_real_factbook_is_what_the_protocol_says(facts: list[Fact]) -> None:
    assert len(facts) == 41_883
    assert all(len(fact.text) <= 40 for fact in facts)
    book = FactBook(facts)
    assert len(book.untrained) / len(facts) == pytest.approx(0.05, abs=0.005)
    assert 0.08 < book.most_frequent(book.trained.tolist()) < 0.12
    assert len(set(book.asked_in)) == len(TEMPLATES)
    assert label("Geography / Area / total ") == "Geography, Area, total"


def test_a_question_and_a_hidden_fact_never_stand_in_the_training_text() -> None:
    book = small()
    text = "".join(bytes(row.tolist()).decode() for row in book.batch(0, 400, 2000))
    for i in book.trained:
        assert book.question(int(i)) + book.facts[i].text + "\n" not in text
    for i in book.untrained:
        assert not any(book.statement(int(i), template) in text for template in range(len(TEMPLATES)))
    seen = sum(book.statement(int(i), (book.asked_in[i] + 1) % 4) in text for i in book.trained)
    assert seen == len(book.trained)


def test_the_split_follows_entity_and_field_and_the_stream_its_position() -> None:
    book, again = small(), small()
    assert book.asked_in == again.asked_in
    assert book.batch(7, 3, 50).tolist() == book.batch(6, 4, 50)[1:].tolist()
    assert set(book.trained) | set(book.untrained) == set(range(300))


def test_a_model_that_knows_scores_full_marks_and_one_that_does_not_scores_the_floor() -> None:
    book = small()
    everything = [book.statement(int(i), book.asked_in[i]) for i in book.trained]
    knows = score_book(Knows(everything), book, limit=40)
    assert knows["exact match"] == 100
    assert knows["exact match, never trained"] == 0
    assert knows["first of 20"] == 100
    assert knows["nats a character"] < 0.01
    ignorant = score_book(Knows([]), book, limit=40)
    assert ignorant["exact match"] == 0
    assert ignorant["first of 20"] <= 20  # equal answers tie, and a tie is lost
    assert ignorant["first of 20, by chance"] == pytest.approx(100 / 17, rel=0.3)
    assert ignorant["nats a character"] > 3


def test_an_answer_with_one_wrong_byte_or_no_end_is_no_match() -> None:
    book = FactBook([Fact(f"land {i}", "capital", "Rome") for i in range(40)], floor=0.0)
    almost = [book.question(i) + "Roma\n" for i in range(40)]
    unended = [book.question(i) + "Romeo\n" for i in range(40)]
    for wrong in (almost, unended):
        assert score_book(Knows(wrong), book, as_bytes, limit=20)["exact match"] == 0


def test_a_parquet_without_the_columns_is_refused(test_data: Path) -> None:
    with pytest.raises(DataError, match="no column"):
        read_factbook(test_data / "text_qa/blimp.parquet")


@pytest.mark.samples
def test_countries_come_from_the_sample() -> None:
    facts = read_countries(fetch("countryinfo"))
    assert Fact("Albania", "capital", "Tirana") in facts
    assert len({fact.entity for fact in facts}) > 200
    assert len(common(facts)) > 1000

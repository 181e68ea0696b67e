"""The factbook protocol on the real factbook: splits, streams, and questions that training never has."""

from __future__ import annotations

from pathlib import Path

import pytest

from language.fact_books import small_book
from tenfold.data.samples import fetch
from tenfold.errors import DataError
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


def test_the_real_factbook_is_what_the_protocol_says(facts: list[Fact]) -> None:
    assert len(facts) == 41_883
    assert all(len(fact.text) <= 40 for fact in facts)
    book = FactBook(facts)
    assert len(book.untrained) / len(facts) == pytest.approx(0.05, abs=0.005)
    assert 0.08 < book.most_frequent(book.trained.tolist()) < 0.12
    assert len(set(book.asked_in)) == len(TEMPLATES)
    assert label("Geography / Area / total ") == "Geography, Area, total"


def test_a_question_and_a_hidden_fact_never_stand_in_the_training_text() -> None:
    book = small_book()
    text = "".join(bytes(row.tolist()).decode() for row in book.batch(0, 400, 2000))
    for i in book.trained:
        assert book.question(int(i)) + book.facts[i].text + "\n" not in text
    for i in book.untrained:
        assert not any(book.statement(int(i), template) in text for template in range(len(TEMPLATES)))
    seen = sum(book.statement(int(i), (book.asked_in[i] + 1) % 4) in text for i in book.trained)
    assert seen == len(book.trained)


def test_the_split_follows_entity_and_field_and_the_stream_its_position() -> None:
    book, again = small_book(), small_book()
    assert book.asked_in == again.asked_in
    assert book.batch(7, 3, 50).tolist() == book.batch(6, 4, 50)[1:].tolist()
    assert set(book.trained) | set(book.untrained) == set(range(300))


def test_a_parquet_without_the_columns_is_refused(test_data: Path) -> None:
    with pytest.raises(DataError, match="no column"):
        read_factbook(test_data / "text_qa/blimp.parquet")


@pytest.mark.samples
def test_countries_come_from_the_sample() -> None:
    facts = read_countries(fetch("countryinfo"))
    assert Fact("Albania", "capital", "Tirana") in facts
    assert len({fact.entity for fact in facts}) > 200
    assert len(common(facts)) > 1000

"""Facts mixed into text: a batch is a function of its number, each kind has its tokens, and wrong fields are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from language.fact_books import Knows, small_book
from needed import package
from tenfold.config import FieldError
from tenfold.errors import DataError, UsageError
from tenfold.language.models.text import ByteVocabulary, Document, Vocabulary, train_bpe
from tenfold.language.pretraining.fact_mixing import FactsConfig, MixedFacts, open_facts

BYTES = ByteVocabulary()
WORLD = FactsConfig("world", entities=20, relations=4, values=64)


def kinds() -> dict[str, MixedFacts]:
    bpe: Vocabulary = train_bpe([Document("a", "the answer of land is known " * 20)], 300)
    world = open_facts(WORLD, BYTES, seed=3)
    assert world is not None
    return {
        "world": world,
        "bytes": MixedFacts(small_book(), BYTES, 10),
        "bpe": MixedFacts(small_book(), bpe, 10),
    }


@pytest.mark.parametrize("kind", ["world", "bytes", "bpe"])
def test_a_batch_is_a_function_of_its_number_and_in_the_vocabulary(kind: str) -> None:
    first, again = kinds()[kind], kinds()[kind]
    rows = first.rows(7, rows=3, length=50)
    assert rows.shape == (3, 50)
    assert np.array_equal(again.rows(7, 3, 50), rows)
    assert not np.array_equal(first.rows(8, 3, 50), rows)
    assert 0 <= rows.min() <= rows.max() < first.vocabulary


def test_generated_facts_have_tokens_above_the_text_s_and_follow_one_another() -> None:
    world = kinds()["world"]
    assert world.rows(0, 2, 12).min() >= BYTES.size

    def told(numbers: range) -> set[tuple[int, ...]]:
        """The facts of these batches: what stands in a statement beside the mark of its form."""
        statements = [row for number in numbers for row in world.rows(number, 4, 6).tolist()]
        return {tuple(sorted(token for token in row if token >= BYTES.size + 4)) for row in statements}

    assert len(told(range(19))) == 76  # every fact once in a pass
    assert told(range(19, 25)) <= told(range(19))


def test_a_bpe_batch_is_the_text_of_the_byte_batch() -> None:
    found = kinds()
    for coded, plain in zip(found["bpe"].rows(2, 3, 30), found["bytes"].rows(2, 3, 400), strict=True):
        text = found["bpe"].text.decode(coded.tolist())
        assert bytes(plain.tolist()).decode().startswith(text.rstrip("\N{REPLACEMENT CHARACTER}"))
        assert len(text) > 30


def test_scores_have_names_that_metrics_can_hold() -> None:
    mixed = kinds()["bytes"]
    scores = mixed.scores(Knows([]))
    assert scores["facts_exact_match"] == 0
    assert all(name.startswith("facts_") and " " not in name and "," not in name for name in scores)


def test_no_facts_are_none_and_a_file_without_them_is_refused(tmp_path: Path) -> None:
    assert open_facts(FactsConfig(), BYTES, 0) is None
    pa, pq = package("pyarrow"), package("pyarrow.parquet")
    pq.write_table(pa.table({"entity": ["a"], "text": ["b"]}), tmp_path / "facts.parquet")
    with pytest.raises(DataError, match="no column field"):
        open_facts(FactsConfig("book", tmp_path / "facts.parquet"), BYTES, 0)


@pytest.mark.parametrize("changes", [{"share": 0.0}, {"share": 1.0}, {"asked": 0}], ids=str)
def test_a_share_or_number_out_of_bounds_names_itself(changes: dict[str, Any]) -> None:
    with pytest.raises(FieldError, match=f"facts.{next(iter(changes))} = "):
        FactsConfig(**changes)
    with pytest.raises(UsageError, match=r"needs facts\.path"):
        FactsConfig("book")

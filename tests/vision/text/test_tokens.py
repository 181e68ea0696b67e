"""Tokens of sentences: rows keep their closing token, padding is told apart, and byte pairs are merged as the file says."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from tenfold.vision.text import tokens
from tenfold.vision.text.tokens import END, START, Tokenizer

WORDS = ["red", "tall", "wet", "old"]


def words(limit: int) -> Tokenizer:
    """One token a word, between 4 (start) and 5 (end); padding is 9."""
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({name: n for n, name in enumerate([*WORDS, START, END])}, unk_token=END)
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    inner.post_processor = tokenizers.processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{START} $A {END}", special_tokens=[(START, 4), (END, 5)]
    )
    return Tokenizer(inner, limit, padding=9)


@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=12), min_size=1, max_size=5), st.integers(3, 8))
def test_a_long_sentence_loses_its_end_and_never_its_closing_token(sentences: list[list[str]], limit: int) -> None:
    rows = words(limit).rows([" ".join(sentence) for sentence in sentences])
    for sentence, row in zip(sentences, rows, strict=True):
        assert row == [4, *[WORDS.index(word) for word in sentence][: limit - 2], 5]


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=4), st.none() | st.just(7))
def test_padded_rows_are_as_wide_as_asked_and_their_mask_gives_them_back(
    rows: list[list[int]], length: int | None
) -> None:
    ids, mask = words(10).padded(rows, length)
    assert ids.shape == mask.shape == (len(rows), length or max(map(len, rows)))
    assert [line[seen].tolist() for line, seen in zip(ids, mask)] == rows
    assert (ids[~mask] == 9).all()


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    """CLIP's tokenizer of a vocabulary of three merges."""
    lines = "#version\nc a\nca t</w>\na t</w>\n"
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(lines.encode()))
    monkeypatch.setattr(tokens, "fetch", lambda name: tmp_path)
    return tokens.tokenizer.__wrapped__("clip")  # past the cache, which keeps the whole vocabulary


def test_letters_are_bytes_and_pairs_are_merged_at_the_ends_of_words(pairs: Tokenizer) -> None:
    first, last = ord("a") - ord("!"), 256  # of a letter within a word; what is added at its end
    cat, at, start, end = 513, 514, 515, 516
    (row, *others) = pairs.rows(["a cat", "A  CAT", "cats at"])
    assert row == [start, first + last, cat, end]
    assert others[0] == row  # letters are lower-cased, spaces are one
    assert others[1] == [start, 512, ord("t") - ord("!"), ord("s") - ord("!") + last, at, end]


def test_what_is_no_word_of_the_file_is_its_bytes(pairs: Tokenizer) -> None:
    (row,) = pairs.rows(["é"])
    assert len(row) == 2 + len("é".encode())
    assert all(0 <= number < 512 for number in row[1:-1])

"""Text corpora: a vocabulary gives back what it took, a split depends on names only, and what is no text is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from needed import package
from tenfold.errors import DataError, UsageError, WeightsError
from tenfold.language.models.text import (
    END,
    BpeVocabulary,
    ByteVocabulary,
    Document,
    Vocabulary,
    check_vocabulary,
    open_vocabulary,
    read_documents,
    split,
    train_bpe,
)

SENTENCES = [
    Document(str(i), f"the {word} of the {word}s — ünïcode 漢\n" * 5) for i, word in enumerate(("sea", "land"))
]


@pytest.fixture(scope="module")
def bpe() -> BpeVocabulary:
    return train_bpe(SENTENCES, 300)


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_encoding_and_decoding_give_the_text_back(bpe: BpeVocabulary, text: str) -> None:
    for vocabulary in (ByteVocabulary(), bpe):
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == text
        assert int(vocabulary.widths[ids].sum() if ids else 0) == len(text.encode())


def test_every_document_is_followed_by_the_end_token(bpe: BpeVocabulary) -> None:
    for vocabulary in (ByteVocabulary(), bpe):
        expected = [token for document in SENTENCES for token in (*vocabulary.encode(document.text), END)]
        assert vocabulary.join(SENTENCES).tolist() == expected


def test_a_vocabulary_is_opened_from_what_it_saved(bpe: BpeVocabulary) -> None:
    again = open_vocabulary(bpe.save())
    assert isinstance(again, Vocabulary)
    assert again.encode("the sea of the land") == bpe.encode("the sea of the land")
    assert len(bpe.encode(SENTENCES[0].text)) < len(SENTENCES[0].text.encode())
    assert isinstance(open_vocabulary(ByteVocabulary().save()), ByteVocabulary)
    with pytest.raises(WeightsError, match="the vocabulary inside the weights cannot be read"):
        open_vocabulary("{}")
    check_vocabulary(bpe, bpe.size)
    with pytest.raises(UsageError, match="allowed is that or more"):
        check_vocabulary(bpe, bpe.size - 1)


@settings(max_examples=20, deadline=None)
@given(st.permutations([f"n{i}" for i in range(120)]))
def test_a_document_s_part_depends_on_its_name_only(names: list[str]) -> None:
    documents = [Document(name, f"text of {name}") for name in names]
    train, held_back = split(documents)
    assert sorted(train + held_back) == sorted(documents)
    assert {d.name for d in split([d._replace(text="other") for d in documents])[1]} == {d.name for d in held_back}
    assert {d.name for d in split(held_back + train)[1]} == {d.name for d in held_back}


def test_too_few_documents_cannot_be_split() -> None:
    with pytest.raises(DataError, match="too few to hold back one in 20"):
        split(SENTENCES[:1])


def test_a_file_is_cut_where_lines_end_and_nothing_is_lost(tmp_path: Path) -> None:
    text = "".join(f"line {i} {'x' * (i % 90)}\n" for i in range(400))
    (tmp_path / "a.txt").write_text(text)
    documents = read_documents(tmp_path / "a.txt")
    assert "".join(d.text for d in documents) == text
    assert all(d.text.endswith("\n") for d in documents)
    assert all(4000 <= len(d.text) < 4200 for d in documents[:-1])


def test_text_comes_from_folders_packed_files_and_parquet_alike(tmp_path: Path) -> None:
    pa, pq = package("pyarrow"), package("pyarrow.parquet")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.md").write_text("one")
    with gzip.open(tmp_path / "folder/b.txt.gz", "wb") as file:
        file.write(b"two")
    (tmp_path / "folder/c.png").write_bytes(b"\0\0")
    assert read_documents(tmp_path / "folder") == [Document("a.md", "one"), Document("b.txt.gz", "two")]
    table = pa.table({"text": ["one", None, " ", "two"], "path": ["p", "q", "r", "s"]})
    pq.write_table(table, tmp_path / "t.parquet")
    assert read_documents(tmp_path / "t.parquet") == [Document("p", "one"), Document("s", "two")]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.txt", b" \n", "holds no text"),
        ("picture.txt", b"\x89PNG\0\0", "it holds NUL bytes"),
        ("cut.txt.gz", gzip.compress(b"text " * 1000)[:40], "cannot be unpacked"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_documents(tmp_path / name)


def test_ids_fit_the_array_that_holds_them(bpe: BpeVocabulary) -> None:
    joined = bpe.join(SENTENCES)
    assert joined.dtype == np.uint16
    assert int(joined.max()) < bpe.size

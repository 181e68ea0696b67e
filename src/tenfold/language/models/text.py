"""Text corpora for language models: documents, their split, and tokens.

    documents = read_documents(None)                          the Python standard library: real text that is always there
    documents = read_documents(Path("corpus.parquet"))        a column of text; also a text file, or a folder of them
    train, held_back = split(documents)                       5 % of the documents, by a hash of their names
    vocabulary = ByteVocabulary()                             or train_bpe(train, 8192)
    tokens = vocabulary.join(train)                           one array; `END` after every document

A vocabulary is text too (`vocabulary.save()`, `open_vocabulary`), so it travels in the file of the weights.
"""

from __future__ import annotations

import gzip
import hashlib
import sysconfig
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from tenfold.data.parquet import parquet_rows
from tenfold.data.readers import read_bytes
from tenfold.errors import DataError, MissingExtra, UsageError, WeightsError

END = 0  # the token after a document: the NUL byte, or <|endoftext|>
HELD_BACK = 20  # one document in so many
MAX_TEXT = 2**30  # bytes of one file, packed and unpacked
SUFFIXES = (".txt", ".md", ".rst", ".py", ".txt.gz")
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}  # of the standard library


class Document(NamedTuple):
    name: str
    text: str


@runtime_checkable
class Vocabulary(Protocol):
    """Text to tokens and back. `widths[i]` is the number of bytes of token i."""

    size: int
    widths: np.ndarray

    def encode(self, text: str) -> list[int]: ...
    def decode(self, tokens: Sequence[int]) -> str: ...
    def join(self, documents: Sequence[Document]) -> np.ndarray: ...
    def save(self) -> str: ...


class ByteVocabulary:
    """UTF-8 bytes."""

    size = 256
    widths = np.ones(256, np.int64)

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "replace"))

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(t for t in tokens if t < 256).decode("utf-8", "replace")

    def join(self, documents: Sequence[Document]) -> np.ndarray:
        """Tokens of all documents, uint8, with `END` after each."""
        parts = [document.text.encode("utf-8", "replace") + b"\0" for document in documents]
        return np.frombuffer(b"".join(parts), np.uint8)

    def save(self) -> str:
        return "bytes"


class BpeVocabulary:
    """Byte-level BPE of the `tokenizers` package; token 0 is <|endoftext|>."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.size: int = backend.get_vocab_size()
        words = [backend.id_to_token(i) for i in range(self.size)]
        self.widths = np.array([1, *(len(word) for word in words[1:])], np.int64)  # a character of a word is one byte

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text).ids

    def decode(self, tokens: Sequence[int]) -> str:
        return self.backend.decode([t for t in tokens if t < self.size], skip_special_tokens=True)

    def join(self, documents: Sequence[Document]) -> np.ndarray:
        """Tokens of all documents, uint16 or uint32, with `END` after each."""
        kind = np.uint16 if self.size <= 2**16 else np.uint32
        encoded = self.backend.encode_batch([document.text for document in documents])
        return np.concatenate([np.array([*e.ids, END], kind) for e in encoded])

    def save(self) -> str:
        return self.backend.to_str()


def train_bpe(documents: Sequence[Document], size: int) -> BpeVocabulary:
    """A vocabulary of at most `size` tokens, the 256 bytes among them."""
    tokenizers = _tokenizers()
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((document.text for document in documents), trainer, len(documents))
    return BpeVocabulary(backend)


def open_vocabulary(text: str) -> ByteVocabulary | BpeVocabulary:
    """The vocabulary that `save` wrote. Raises WeightsError for anything else."""
    if text == "bytes":
        return ByteVocabulary()
    try:
        return BpeVocabulary(_tokenizers().Tokenizer.from_str(text))
    except MissingExtra:
        raise
    except Exception as error:  # the package raises plain Exception
        raise WeightsError(f"the vocabulary inside the weights cannot be read ({error}).") from error


def read_documents(data: Path | None, column: str = "text") -> list[Document]:
    """Documents in a fixed order. Raises DataError without any text, naming what was looked for.

    data: parquet (column `column`; `path`, if there, names the documents), a text file, a folder of text files, or None
    for the sources and topics of the running Python's standard library.
    """
    if data is None:
        documents = _standard_library()
    elif data.suffix == ".parquet":
        columns, _ = parquet_rows(data, [column], ["path"])
        names = columns.get("path") or range(len(columns[column]))
        documents = [Document(str(n), t) for n, t in zip(names, columns[column]) if isinstance(t, str)]
    elif data.is_dir():
        files = sorted(f for f in data.rglob("*") if f.name.endswith(SUFFIXES) and f.is_file())
        documents = [Document(str(f.relative_to(data)), _read(f)) for f in files]
    else:
        documents = _parts(_read(data))
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        what = f"column {column!r}" if data is not None and data.suffix == ".parquet" else ", ".join(SUFFIXES)
        raise DataError(f"{data} holds no text ({what}).")
    return documents


def split(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """(train, held back): a document's part depends only on its name. Raises DataError when either is empty."""
    parts: tuple[list[Document], list[Document]] = ([], [])
    for document in documents:
        digest = hashlib.sha256(document.name.encode("utf-8", "replace")).digest()
        parts[int.from_bytes(digest[:8], "big") % HELD_BACK == 0].append(document)
    if not all(parts):
        raise DataError(
            f"{len(documents)} documents: too few to hold back one in {HELD_BACK} for validation. Give more of them."
        )
    return parts


def _standard_library() -> list[Document]:
    from pydoc_data.topics import topics

    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(f for f in root.rglob("*.py") if not LEFT_OUT & set(f.relative_to(root).parts))
    sources = [Document(str(f.relative_to(root)), _read(f)) for f in files]
    return sources + [Document(f"topics/{name}", text) for name, text in sorted(topics.items())]


def _parts(text: str) -> list[Document]:
    """One file as documents of about 4,000 characters, cut where a line ends, so that a share can be held back."""
    parts: list[Document] = []
    lines: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line)
        if size >= 4000:
            parts.append(Document(str(len(parts)), "".join(lines)))
            lines, size = [], 0
    return [*parts, Document(str(len(parts)), "".join(lines))] if lines else parts


def _read(path: Path) -> str:
    data = read_bytes(path, MAX_TEXT)
    if path.suffix == ".gz":
        try:
            with gzip.open(path) as file:
                data = file.read(MAX_TEXT + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} cannot be unpacked: {error}.") from error
        if len(data) > MAX_TEXT:
            raise DataError(f"{path} unpacks to more than {MAX_TEXT:,} bytes.")
    if b"\0" in data[:4096]:
        raise DataError(
            f"{path} is not text: it holds NUL bytes. Allowed: parquet, {', '.join(SUFFIXES)}, or a folder."
        )
    return data.decode("utf-8", "replace")


def _tokenizers() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise MissingExtra("tokenizers", "language", "it trains and reads BPE vocabularies") from error
    return tokenizers


def check_vocabulary(vocabulary: Vocabulary, allowed: int) -> None:
    """Raises UsageError when a model of `allowed` tokens is too small for it."""
    if vocabulary.size > allowed:
        raise UsageError(
            f"model.vocabulary = {allowed}: the text has {vocabulary.size} different tokens; allowed is that or more."
        )

"""Text to train a language model on: documents, split once and for all, as one array of bytes.

    corpus = read_corpus(None)                      the Python standard library and its help: always there, no download
    corpus = read_corpus(Path("corpus.parquet"))    columns `text` and, for the split, `path`; also .txt, .gz, a folder
    corpus.train, corpus.validation                 uint8 arrays; 5 % of the documents, by a hash of their name

A document's side of the split depends on its name alone, so that a larger corpus never moves one across.
"""

from __future__ import annotations

import gzip
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from tenfold.data.parquet import parquet_rows
from tenfold.data.readers import read_bytes
from tenfold.errors import DataError

VALIDATION = 0.05  # share of the documents
LIMIT = 2**30  # bytes of a file
SUFFIXES = (".txt", ".md", ".rst", ".py")  # of a folder's files
END = b"\n\n"  # between documents


@dataclass(frozen=True)
class Corpus:
    """Two disjoint sets of documents, each joined."""

    train: UInt8[np.ndarray, "n"]
    validation: UInt8[np.ndarray, "m"]


def read_corpus(path: Path | None = None) -> Corpus:
    """Raises DataError for a path that holds no text."""
    parts: dict[bool, list[bytes]] = {True: [], False: []}
    for name, text in _documents(path):
        if text.strip():
            parts[held_back(name)].append(text)
    if not parts[False]:
        raise DataError(f"{path or 'the Python standard library'} holds no text to train on.")
    if not parts[True]:  # a single document, or few: the last part of each is held back
        cut = [(t[: -int(len(t) * VALIDATION) or None], t[-int(len(t) * VALIDATION) or len(t) :]) for t in parts[False]]
        parts = {False: [a for a, _ in cut], True: [b for _, b in cut]}
    return Corpus(*(np.frombuffer(END.join(parts[side]), np.uint8) for side in (False, True)))


def held_back(name: str) -> bool:
    """Whether a document is for validation."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") < VALIDATION * 2**32


def _documents(path: Path | None) -> Iterator[tuple[str, bytes]]:
    if path is None:
        root = Path(sysconfig.get_path("stdlib"))
        for file in sorted([*root.glob("*.py"), *root.glob("pydoc_data/topics.py")]):
            yield file.name, read_bytes(file, LIMIT)
    elif path.is_dir():
        for file in sorted(f for f in path.rglob("*") if f.suffix in SUFFIXES and f.is_file()):
            yield str(file.relative_to(path)), read_bytes(file, LIMIT)
    elif path.suffix == ".parquet":
        columns, _ = parquet_rows(path, ["text"], ["path"])
        names = columns.get("path") or map(str, range(len(columns["text"])))
        for name, text in zip(names, columns["text"]):
            yield str(name), (text or "").encode()
    else:
        data = read_bytes(path, LIMIT)
        yield path.name, _unpacked(path, data) if path.suffix == ".gz" else data


def _unpacked(path: Path, data: bytes) -> bytes:
    import io

    try:
        with gzip.open(io.BytesIO(data)) as file:
            text = file.read(LIMIT + 1)
    except (OSError, EOFError) as error:
        raise DataError(f"{path} is not a gzip file that can be read: {error}.") from error
    if len(text) > LIMIT:
        raise DataError(f"{path} unpacks to more than {LIMIT:,} bytes.")
    return text


class Windows:
    """Endless batches of `rows` windows of `length` tokens, int64. Window r of batch t is drawn from (seed, its place in
    the stream), so the stream is its position and the same on any number of ranks. Of every batch the last rows come
    from `facts` (an object with `batch(position, rows, length)`) where there is one."""

    def __init__(
        self,
        text: UInt8[np.ndarray, "n"],
        rows: int,
        length: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        facts: Any = None,
        fact_rows: int = 0,
    ) -> None:
        if len(text) <= length:
            raise DataError(f"the text has {len(text):,} bytes; a window takes {length:,}.")
        self.text, self.rows, self.length, self.seed = text, rows, length, seed
        self.rank, self.world, self.facts, self.fact_rows = rank, world, facts, fact_rows if facts is not None else 0
        self.position = 0  # batches handed out

    def __iter__(self) -> Windows:
        return self

    def __next__(self) -> Int[Tensor, "rows length"]:
        plain = self.rows - self.fact_rows
        draws = np.random.default_rng((self.seed, self.position))
        starts = draws.integers(len(self.text) - self.length, size=plain)
        batch = np.empty((self.rows, self.length), np.int64)
        for row, start in enumerate(starts):
            batch[row] = self.text[start : start + self.length]
        if self.fact_rows:
            batch[plain:] = self.facts.batch(self.position * self.fact_rows, self.fact_rows, self.length)
        self.position += 1
        # Ranks take rows in turn, so that each has its share of text and of facts.
        return torch.from_numpy(batch[self.rank :: self.world].copy())

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = int(state["position"])

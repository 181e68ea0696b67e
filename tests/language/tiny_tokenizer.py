"""A byte-level BPE tokenizer with one merge, as GGUF metadata and opened, for tests that need text."""

from __future__ import annotations

from pathlib import Path

import tokenizers

from tenfold.language.models.tokenizer import Tokenizer, from_gguf

BYTES = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def fields(**changes: object) -> dict[str, object]:
    """What a GGUF file says of its tokenizer: an end token, all bytes, and one word of two letters."""
    words = ["<end>", *BYTES, "ab"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [3, *[1] * (len(words) - 1)],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.chat_template": "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}",
        **changes,
    }


def bytes_tokenizer(**changes: object) -> Tokenizer:
    return from_gguf(fields(**changes), Path("m.gguf"))

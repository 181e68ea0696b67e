"""Answers of the target, with what a drafter learns from: the tokens, the target's features and its own best guesses.

    write_answers(Path("shard-0000.safetensors"), answers, about)
    answers = read_answers(Path("answers/"))                    one file or a folder of shards
    batch = collate(answers[:4])                                padded at the end, int64 tokens

A shard is a safetensors file: tokens and argmax (int32) and features (bf16) of all answers one after the other, with their
lengths, the lengths of their prompts and their temperatures. SmolLM2 needs 4.6 KB for a token.

    B answers   N tokens of the longest   F width of the features (auxiliary layers, then the state after the last norm)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenfold.data.tensors import read_safetensors, write_safetensors
from tenfold.errors import DataError

KEY = "tenfold-answers"  # the metadata entry: what made them
NAMES = ("tokens", "lengths", "prompts", "features", "argmax", "temperature")


@dataclass(frozen=True)
class Answer:
    """A prompt and what the target wrote behind it.

    tokens (N): prompt and answer. prompt: tokens of the prompt. features (N, F): row i after token i; the row of the last
    token may be anything. argmax (N): the target's most likely token after token i.
    """

    tokens: Int[Tensor, " n"]
    prompt: int
    features: Float[Tensor, "n f"]
    argmax: Int[Tensor, " n"]
    temperature: float = 0.0

    @property
    def length(self) -> int:
        """Tokens of the answer alone."""
        return len(self.tokens) - self.prompt

    def tail(self, rows: int) -> Answer:
        """Without the prompt's tokens before its last `rows`. A drafter whose window is shorter learns the same from it:
        rotated positions are relative, and the features have seen the whole prompt."""
        cut = max(0, self.prompt - rows)
        if cut == 0:
            return self
        tokens, features, argmax = (part[cut:].clone() for part in (self.tokens, self.features, self.argmax))
        return Answer(tokens, self.prompt - cut, features, argmax, self.temperature)


def repeats_itself(tokens: Sequence[int], n: int = 8) -> bool:
    """Whether over half of the n-grams have stood before: a greedy small model that has fallen into a loop."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(grams) - len(set(grams)) > len(grams) / 2


def write_answers(path: Path, answers: Sequence[Answer], about: dict[str, Any]) -> None:
    """One shard. `about` says which target, layers and prompts; it travels in the file's metadata."""
    tensors = {
        "tokens": torch.cat([a.tokens.int() for a in answers]),
        "lengths": torch.tensor([len(a.tokens) for a in answers]),
        "prompts": torch.tensor([a.prompt for a in answers]),
        "features": torch.cat([a.features.bfloat16() for a in answers]),
        "argmax": torch.cat([a.argmax.int() for a in answers]),
        "temperature": torch.tensor([a.temperature for a in answers]),
    }
    write_safetensors(path, tensors, {KEY: json.dumps(about)})


def read_answers(path: Path) -> list[Answer]:
    """All answers of a shard, or of every shard in a folder, in order. Raises DataError where they do not fit together."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise DataError(
            f"{path} holds no answers (*.safetensors). Type: tenfold train eagle3-smollm2 --keep-answers {path}"
        )
    return [answer for file in files for answer in _read_shard(file)]


def _read_shard(path: Path) -> list[Answer]:
    tensors, _ = read_safetensors(path)
    lacking = [name for name in NAMES if name not in tensors]
    if lacking:
        raise DataError(f"{path} is no shard of answers: it lacks {', '.join(lacking)}.")
    lengths, prompts = tensors["lengths"].tolist(), tensors["prompts"].tolist()
    total = sum(lengths)
    rows = {name: len(tensors[name]) for name in ("tokens", "features", "argmax")}
    if any(count != total for count in rows.values()) or len(prompts) != len(lengths):
        raise DataError(f"{path}: lengths add up to {total}, but there are {rows}.")
    if not all(0 < prompt < length for prompt, length in zip(prompts, lengths)):
        raise DataError(f"{path}: every answer needs a prompt before it and a token of its own.")
    parts = {name: tensors[name].split(lengths) for name in rows}
    return [
        Answer(parts["tokens"][i], prompts[i], parts["features"][i], parts["argmax"][i], float(t))
        for i, t in enumerate(tensors["temperature"].tolist())
    ]


def collate(answers: Sequence[Answer]) -> dict[str, Tensor]:
    """tokens, argmax (B, N) int64; features (B, N, F); prompts, lengths (B)."""
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "tokens": pad([a.tokens.long() for a in answers], batch_first=True),
        "argmax": pad([a.argmax.long() for a in answers], batch_first=True),
        "features": pad([a.features for a in answers], batch_first=True),
        "prompts": torch.tensor([a.prompt for a in answers]),
        "lengths": torch.tensor([len(a.tokens) for a in answers]),
    }

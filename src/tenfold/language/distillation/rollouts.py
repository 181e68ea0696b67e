"""Rollouts, the training data of a drafter: what the target itself wrote, with its features and its most likely tokens.

    write_rollouts(Path("shard-0000.safetensors"), rollouts, about)
    rollouts = read_rollouts(Path("rollouts/"))                one file or a folder of shards
    batch = collate(rollouts[:4])                               padded at the end, int64 tokens

A shard is a safetensors file: tokens and argmax (int32) and features (bf16) of all rollouts one after the other, with their
lengths, the lengths of their prompts and their temperatures. SmolLM2 needs 4.6 KB for a token.

    B rollouts   N tokens of the longest   F width of the features (auxiliary layers, then the state after the last norm)
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

KEY = "tenfold-answers"  # the metadata entry: what made them (the name in files of every version)
NAMES = ("tokens", "lengths", "prompts", "features", "argmax", "temperature")


@dataclass(frozen=True)
class Rollout:
    """A prompt and what the target wrote behind it.

    tokens (N): prompt and continuation. prompt: tokens of the prompt. features (N, F): row i after token i; the row of the last
    token may be anything. argmax (N): the target's most likely token after token i.
    """

    tokens: Int[Tensor, " n"]
    prompt: int
    features: Float[Tensor, "n f"]
    argmax: Int[Tensor, " n"]
    temperature: float = 0.0

    @property
    def length(self) -> int:
        """Tokens behind the prompt."""
        return len(self.tokens) - self.prompt

    def tail(self, rows: int) -> Rollout:
        """Without the prompt's tokens before its last `rows`. A drafter whose window is shorter learns the same from it:
        rotated positions are relative, and the features have seen the whole prompt."""
        cut = max(0, self.prompt - rows)
        if cut == 0:
            return self
        tokens, features, argmax = (part[cut:].clone() for part in (self.tokens, self.features, self.argmax))
        return Rollout(tokens, self.prompt - cut, features, argmax, self.temperature)


def repeats_itself(tokens: Sequence[int], n: int = 8) -> bool:
    """Whether over half of the n-grams have stood before: a greedy small model that has fallen into a loop."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(grams) - len(set(grams)) > len(grams) / 2


def write_rollouts(path: Path, rollouts: Sequence[Rollout], about: dict[str, Any]) -> None:
    """One shard. `about` says which target, layers and prompts; it travels in the file's metadata."""
    tensors = {
        "tokens": torch.cat([a.tokens.int() for a in rollouts]),
        "lengths": torch.tensor([len(a.tokens) for a in rollouts]),
        "prompts": torch.tensor([a.prompt for a in rollouts]),
        "features": torch.cat([a.features.bfloat16() for a in rollouts]),
        "argmax": torch.cat([a.argmax.int() for a in rollouts]),
        "temperature": torch.tensor([a.temperature for a in rollouts]),
    }
    write_safetensors(path, tensors, {KEY: json.dumps(about)})


def read_rollouts(path: Path) -> list[Rollout]:
    """All rollouts of a shard, or of every shard in a folder, in order. Raises DataError where they do not fit together."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise DataError(
            f"{path} holds no rollouts (*.safetensors). Type: tenfold train eagle3-smollm2 --rollouts.keep {path}"
        )
    return [rollout for file in files for rollout in _read_shard(file)]


def _read_shard(path: Path) -> list[Rollout]:
    tensors, _ = read_safetensors(path)
    lacking = [name for name in NAMES if name not in tensors]
    if lacking:
        raise DataError(f"{path} is not a shard of rollouts: it lacks {', '.join(lacking)}.")
    lengths, prompts = tensors["lengths"].tolist(), tensors["prompts"].tolist()
    total = sum(lengths)
    rows = {name: len(tensors[name]) for name in ("tokens", "features", "argmax")}
    if any(count != total for count in rows.values()) or len(prompts) != len(lengths):
        raise DataError(f"{path}: lengths add up to {total}, but there are {rows}.")
    if not all(0 < prompt < length for prompt, length in zip(prompts, lengths)):
        raise DataError(f"{path}: every rollout needs a prompt before it and a token of its own.")
    parts = {name: tensors[name].split(lengths) for name in rows}
    return [
        Rollout(parts["tokens"][i], prompts[i], parts["features"][i], parts["argmax"][i], float(t))
        for i, t in enumerate(tensors["temperature"].tolist())
    ]


def collate(rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
    """tokens, argmax (B, N) int64; features (B, N, F); prompts, lengths (B)."""
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "tokens": pad([a.tokens.long() for a in rollouts], batch_first=True),
        "argmax": pad([a.argmax.long() for a in rollouts], batch_first=True),
        "features": pad([a.features for a in rollouts], batch_first=True),
        "prompts": torch.tensor([a.prompt for a in rollouts]),
        "lengths": torch.tensor([len(a.tokens) for a in rollouts]),
    }

"""A small language model for tests, trained for real by the command line."""

from __future__ import annotations

import shlex
from pathlib import Path

from tenfold.cli import main

SMALL = shlex.split(
    "--model.dim 32 --model.hidden 96 --model.depth 2 --model.heads 2 --model.kv-heads 2 --model.context 32 "
    "--length 32 --batch 8 --val-tokens 2048"
)


def train(recipe: str, out: Path, text: Path, *more: object) -> int:
    return main(["train", recipe, "--out", str(out), "--data", str(text), *SMALL, *map(str, more)])

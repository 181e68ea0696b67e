"""Prompts from files, and the benchmark prompts that nothing here is ever trained on.

    prompts = read_prompts(Path("gsm8k_train.jsonl.gz"))        .jsonl or .jsonl.gz with turns, question, prompt or instruction
    refuse_benchmarks(prompts, where)                           DataError when one of them is a benchmark's

`assets/benchmark_prompts.txt` holds hashes of the user turns of the 320 prompts that speeds and acceptances are measured on
(alpaca, gsm8k, humaneval, mt_bench: 80 each). A drafter that has seen them would look better than it is.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path

from tenfold.errors import DataError

KEYS = ("turns", "question", "prompt", "instruction")
LINE_LIMIT = 1 << 20  # characters


def read_prompts(path: Path) -> list[str]:
    """The first user turn of every line, in order. Raises DataError with the line that is none."""
    prompts = []
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(iter(lambda: file.readline(LINE_LIMIT), ""), 1):
                if line.strip():
                    prompts.append(_prompt(path, number, line))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    if not prompts:
        raise DataError(f"{path} holds no prompts. A line is JSON with one of: {', '.join(KEYS)}.")
    return prompts


def _prompt(path: Path, number: int, line: str) -> str:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number}: not JSON ({error}).") from error
    found = [values[key] for key in KEYS if key in values] if isinstance(values, dict) else []
    text = found[0][0] if found and isinstance(found[0], list) and found[0] else (found or [None])[0]
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{path}, line {number}: no prompt. A line has one of: {', '.join(KEYS)}.")
    return text


def prompt_hash(prompt: str) -> str:
    """Of the words alone, so that spaces and capitals hide nothing. 16 hex digits of SHA-256."""
    return hashlib.sha256(" ".join(prompt.lower().split()).encode()).hexdigest()[:16]


@cache
def benchmark_hashes() -> frozenset[str]:
    text = (files("tenfold") / "assets" / "benchmark_prompts.txt").read_text()
    return frozenset(line for line in text.split("\n") if line and not line.startswith("#"))


def is_benchmark(prompt: str) -> bool:
    return prompt_hash(prompt) in benchmark_hashes()


def refuse_benchmarks(prompts: Iterable[str], where: object) -> None:
    """Raises DataError (exit code 3) when one of the prompts belongs to the benchmarks."""
    for number, prompt in enumerate(prompts, 1):
        if is_benchmark(prompt):
            raise DataError(
                f"{where}, prompt {number} ({prompt[:60]!r} ...) is one of the benchmark prompts that acceptance is measured "
                "on. Training on it would make the measurement worthless: take it out."
            )

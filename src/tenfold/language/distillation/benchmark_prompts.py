"""Decontamination: the benchmark prompts that nothing here is ever trained on.

    refuse_benchmarks(read_prompts(path), path)                 DataError when one of them is a benchmark's

`assets/benchmark_prompts.txt` holds hashes of the user turns of the 320 prompts that speeds and acceptances are measured on
(alpaca, gsm8k, humaneval, mt_bench: 80 each). A drafter that has seen them would look better than it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from tenfold.errors import DataError


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

"""`tenfold bench speculative`: SmolLM2 alone, with look-up and with its trained drafter, beside transformers.

All sides answer the same prompts greedily, one request at a time, from the same weights, in turns in one process: a side's
figure is milliseconds a token, and the ratio is taken prompt by prompt. Ours decodes in bf16 where the CPU has units for it;
transformers in fp32, its own default.

Prompts: the first of gsm8k and mt_bench in TENFOLD_TEST_DATA, or six of our own where that is not set.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tenfold.bench.table import ratio
from tenfold.errors import MissingExtra
from tenfold.export.weights import convert
from tenfold.language.engine import LLM, locate
from tenfold.language.sampling import SamplingParams
from tenfold.language.speculation import Speculation
from tenfold.language.tokenizer import read_prompts

MODEL, TOKENS, EACH = "smollm2-135m-instruct", 96, 4
OWN = {
    "sums": [
        "A baker makes 12 loaves an hour for 5 hours and sells 41 of them. How many are left?",
        "Mia reads 14 pages a day for two weeks. The book has 230 pages. How many pages are left?",
        "A train of 9 wagons carries 64 seats in each. If 407 seats are taken, how many are free?",
    ],
    "talk": [
        "Write a short letter to a neighbour about a lost cat.",
        "What should I think about before I buy a second-hand bicycle?",
        "Explain to a child why the moon changes its shape.",
    ],
}


def run(rounds: int = 5) -> dict[str, Any]:
    """Milliseconds a token and tokens per call of every side, by set of prompts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        llms = {
            "alone": LLM(MODEL, None),
            "look-up": LLM(MODEL, "ngram"),
            "drafter and look-up": LLM(MODEL, "auto", Speculation()),
        }
        sides: dict[str, Callable[[list[int]], tuple[int, float]]] = {name: _ours(llm) for name, llm in llms.items()}
        sides |= _transformers(llms["alone"])
        rows = [
            row for name, prompts in _prompts(llms["alone"]).items() for row in _measure(name, prompts, sides, rounds)
        ]
    finally:
        torch.set_num_threads(threads)
    return {
        "title": f"Speculative decoding of {MODEL}, batch 1, greedy",
        "rows": rows,
        "notes": [
            f"One thread; {TOKENS} tokens an answer at most; ms a token of whole answers, the prompt's pass included, median "
            "over prompts and rounds; ratio = alone / side, median (smallest to largest) over prompts and rounds.",
            *(f"{name}: {note}" for name, llm in llms.items() for note in llm.notes[:2]),
        ],
    }


def _prompts(llm: LLM) -> dict[str, list[list[int]]]:
    folder = Path(os.environ.get("TENFOLD_TEST_DATA", "")) / "text" / "prompts"
    texts = OWN
    if folder.is_dir():
        texts = {name: read_prompts(folder / f"{name}.jsonl")[:EACH] for name in ("gsm8k", "mt_bench")}
    return {name: [llm.tokenizer.chat([{"role": "user", "content": t}]) for t in some] for name, some in texts.items()}


def _ours(llm: LLM) -> Callable[[list[int]], tuple[int, float]]:
    """(tokens, TPC) of an answer."""

    def answer(prompt: list[int]) -> tuple[int, float]:
        result = llm.generate([prompt], SamplingParams(max_tokens=TOKENS))[0]
        return len(result.token_ids), result.stats.tokens_per_call

    return answer


def _transformers(llm: LLM) -> dict[str, Callable[[list[int]], tuple[int, float]]]:
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise MissingExtra("transformers", "dev", "it is the peer of this benchmark") from error
    with tempfile.TemporaryDirectory() as folder:
        model: Any = AutoModelForCausalLM.from_pretrained(convert(locate(MODEL), Path(folder) / "hf", to="hf"))
    stops = sorted(llm.tokenizer.stop_ids)

    def answering(**more: Any) -> Callable[[list[int]], tuple[int, float]]:
        def answer(prompt: list[int]) -> tuple[int, float]:
            with torch.inference_mode():
                out = model.generate(
                    torch.tensor([prompt]),
                    attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                    max_new_tokens=TOKENS,
                    do_sample=False,
                    eos_token_id=stops,
                    pad_token_id=stops[0],
                    **more,
                )
            return out.shape[1] - len(prompt), float("nan")

        return answer

    return {"transformers": answering(), "transformers, look-up": answering(prompt_lookup_num_tokens=6)}


def _measure(
    name: str, prompts: list[list[int]], sides: dict[str, Callable[[list[int]], tuple[int, float]]], rounds: int
) -> list[dict[str, Any]]:
    times: dict[str, list[float]] = {side: [] for side in sides}
    tokens_per_call: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(rounds + 1):
        for prompt in prompts if turn else prompts[:1]:  # the first turn warms up
            for side, answer in sides.items():
                started = time.perf_counter()
                tokens, tpc = answer(prompt)
                if turn:
                    times[side].append((time.perf_counter() - started) * 1e3 / tokens)
                    tokens_per_call[side].append(tpc)
    rows = []
    for side, values in times.items():
        middle, low, high = ratio(values, times["alone"])
        tpc = median(tokens_per_call[side])
        rows.append(
            {
                "prompts": name,
                "side": side,
                "ms/token": round(median(values), 2),
                "min to max": f"{min(values):.1f} to {max(values):.1f}",
                "ratio": f"{middle:.2f} ({low:.2f} to {high:.2f})",
                "TPC": "" if tpc != tpc else round(tpc, 2),
            }
        )
    return rows

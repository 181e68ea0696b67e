"""`tenfold bench speculative`: SmolLM2 alone, with prompt lookup, with its drafter; beside transformers and OpenVINO GenAI.

All sides answer the same prompts greedily, one request at a time, from the same weights file, in turns: a side's figure is
milliseconds a token, and every ratio is taken prompt by prompt within a round. The processor's time of all threads of the
side's process is what counts, because other processes on the machine disturb it least; the wall's time stands beside it.
transformers runs in fp32, its own default for this file, and alone in bf16 too, where the processor has units for that;
OpenVINO reads the GGUF itself, in a process of its own (`make peers`). With more threads than one (`--threads 2`) the clock on
the wall counts, because some sides spin while they wait; the machine must then be idle.

Prompts: the first of gsm8k and mt_bench in TENFOLD_TEST_DATA, or six of our own where that is not set.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from tenfold.bench.peers import OpenVINO, openvino_missing
from tenfold.bench.table import on_threads, ratio
from tenfold.errors import MissingExtra, unknown_name
from tenfold.export.weights import convert
from tenfold.kernels.machine import bf16_refusal
from tenfold.language.decoding.engine import LLM, LLMEngine, locate
from tenfold.language.drafting.ngram import NgramDrafter
from tenfold.language.drafting.speculation import with_trees
from tenfold.language.models.tokenizer import read_prompts
from tenfold.language.sampling.sampling import SamplingParams

MODEL, TOKENS, EACH = "smollm2-135m-instruct", 96, 4
PEERS = ("hf", "prompt-lookup", "openvino")
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


@dataclass(frozen=True)
class Answered:
    """What one answer took: seconds of CPU time and of wall time."""

    ids: list[int]
    cpu: float
    wall: float
    tpc: float = float("nan")


Side = Callable[[list[int]], Answered]


@dataclass
class Measured:
    """All answers of one side to one set of prompts, in the same order for every side."""

    answers: list[Answered] = field(default_factory=list)
    clock: str = "cpu"  # or "wall": what counts

    def ms(self, clock: str = "") -> list[float]:
        return [1e3 * getattr(a, clock or self.clock) / len(a.ids) for a in self.answers]

    @property
    def whole(self) -> float:
        """Milliseconds a token over all answers together."""
        return 1e3 * sum(getattr(a, self.clock) for a in self.answers) / sum(len(a.ids) for a in self.answers)


def run(rounds: int = 3, peers: Sequence[str] = (), each: int = EACH, threads: int = 1) -> dict[str, Any]:
    """Milliseconds a token and tokens per call of every side, by set of prompts. peers: of PEERS, or () for all that are
    here. threads: of every side."""
    for name in peers:
        if name not in PEERS:
            raise unknown_name("peer", name, PEERS)
    clock, notes = "cpu" if threads == 1 else "wall", []
    with on_threads(threads):
        llms = {}
        for end, form in (("", "bf16"), (", int4", "int4")):
            whole = LLM(MODEL, "auto", weights=form)
            llms[f"alone{end}"] = sharing(whole, None)
            llms[f"prompt lookup{end}"] = sharing(whole, "ngram")
            llms[f"drafter and prompt lookup{end}"] = whole
        del llms["prompt lookup, int4"]
        sides: dict[str, Side] = {name: _ours(llm) for name, llm in llms.items()}
        sides |= _transformers(whole, peers or PEERS)
        if "transformers" in sides and (reason := bf16_refusal()):
            notes.append(f"transformers in bf16: not measured, {reason}.")
        if "openvino" in (peers or PEERS):
            if reason := openvino_missing():
                notes.append(f"OpenVINO GenAI: not measured, {reason}.")
            else:
                sides["OpenVINO GenAI"], version = _openvino(llms["alone"], threads)
                notes.append(f"OpenVINO GenAI {version}.")
        prompts = benchmark_prompts(llms["alone"], each)
        found = {name: measure(some, sides, rounds) for name, some in prompts.items()}
    for sides_found in found.values():
        for measured in sides_found.values():
            measured.clock = clock
    counted = {"cpu": "of CPU time", "wall": "on the wall"}[clock]
    return {
        "title": f"Speculative decoding of {MODEL}, batch 1, greedy",
        "rows": [row for name, sides_found in found.items() for row in _rows(name, sides_found)],
        "notes": [
            f"Threads: {threads}; {each} prompts of each set, {rounds} rounds; {TOKENS} tokens an answer at most; ms {counted} "
            "a token of whole answers, the prompt's pass included, median over prompts and rounds; ratios = alone / side and "
            "transformers / side, median (smallest to largest) over prompts and rounds, and over all tokens together.",
            *(f"{name}: {note}" for name, llm in llms.items() if "drafter" in name for note in llm.notes[:2]),
            *notes,
            *(mark for name, some in found.items() for mark in marks(name, some)),
        ],
    }


def sharing(llm: LLM, drafter: Literal["ngram"] | None) -> LLM:
    """The same weights with another drafter, or none."""
    other = copy.copy(llm)
    device = llm.model.embedding.weight.device
    other.drafter = None if drafter is None else with_trees(NgramDrafter(), llm.format, device)
    other.engine = LLMEngine(llm.model, llm.tokenizer, other.drafter, max_batch=64, cache_tokens=32768)
    return other


def marks(name: str, found: dict[str, Measured]) -> list[str]:
    """The comparisons that are asked for, as sentences."""
    ours = [side for side in found if not side.startswith(("transformers", "OpenVINO"))]
    best = min(ours, key=lambda side: median(found[side].ms()))
    alone = min((side for side in ours if side.startswith("alone")), key=lambda side: median(found[side].ms()))
    wanted = [
        ("alone", "transformers"),
        ("alone", "transformers, bf16"),
        ("drafter and prompt lookup", "alone"),
        ("drafter and prompt lookup, int4", "alone, int4"),
        ("drafter and prompt lookup", "transformers"),
        ("drafter and prompt lookup", "transformers, bf16"),
        ("drafter and prompt lookup", "transformers, prompt lookup"),
        (best, alone),
        (best, "OpenVINO GenAI"),
    ]
    sentences = []
    for side, peer in dict.fromkeys(wanted):
        if side in found and peer in found and side != peer:
            middle, low, high = ratio(found[side].ms(), found[peer].ms())
            overall = found[peer].whole / found[side].whole
            sentences.append(
                f"{name}: {side} is {middle:.2f} ({low:.2f} to {high:.2f}) times {peer}, {overall:.2f} over all tokens."
            )
    same = {
        drafted: sum(a.ids == b.ids for a, b in zip(found[drafted].answers, found[plain].answers, strict=True))
        for drafted, plain in (
            ("prompt lookup", "alone"),
            ("drafter and prompt lookup", "alone"),
            ("drafter and prompt lookup, int4", "alone, int4"),
        )
    }
    total = len(found["alone"].answers)
    sentences += [f"{name}: {side} wrote {n} of {total} answers like the target alone." for side, n in same.items()]
    return sentences


def benchmark_prompts(llm: LLM, each: int) -> dict[str, list[list[int]]]:
    """The ids of the first prompts of every set."""
    folder = Path(os.environ.get("TENFOLD_TEST_DATA", "")) / "text" / "prompts"
    texts = OWN
    if folder.is_dir():
        texts = {name: read_prompts(folder / f"{name}.jsonl")[:each] for name in ("gsm8k", "mt_bench")}
    return {name: [llm.tokenizer.chat([{"role": "user", "content": t}]) for t in some] for name, some in texts.items()}


def _ours(llm: LLM) -> Side:
    def answer(prompt: list[int]) -> Answered:
        cpu, wall = time.process_time(), time.perf_counter()
        result = llm.generate([prompt], SamplingParams(max_tokens=TOKENS))[0]
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return Answered(result.token_ids, cpu, wall, result.stats.tokens_per_call)

    return answer


def _transformers(llm: LLM, peers: Sequence[str]) -> dict[str, Side]:
    if not {"hf", "prompt-lookup"} & set(peers):
        return {}
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise MissingExtra("transformers", "dev", "it is the peer of this benchmark") from error
    with tempfile.TemporaryDirectory() as folder:
        path = convert(locate(MODEL), Path(folder) / "hf", to="hf")
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    stops = sorted(llm.tokenizer.stop_ids)

    def answering(model: Any, **more: Any) -> Side:
        def answer(prompt: list[int]) -> Answered:
            cpu, wall = time.process_time(), time.perf_counter()
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
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            return Answered(out[0, len(prompt) :].tolist(), cpu, wall)

        return answer

    sides: dict[str, Side] = {}
    if "hf" in peers:
        sides["transformers"] = answering(model)
        if bf16_refusal() is None:
            sides["transformers, bf16"] = answering(copy.deepcopy(model).to(torch.bfloat16))
    if "prompt-lookup" in peers:
        sides["transformers, prompt lookup"] = answering(model, prompt_lookup_num_tokens=6)
    return sides


def _openvino(llm: LLM, threads: int) -> tuple[Side, str]:
    peer, stops = OpenVINO(locate(MODEL), threads=threads), sorted(llm.tokenizer.stop_ids)

    def answer(prompt: list[int]) -> Answered:
        ids, cpu, wall = peer.answer(prompt, TOKENS, stops)
        return Answered(ids, cpu, wall)

    return answer, peer.version


def measure(prompts: Sequence[list[int]], sides: dict[str, Side], rounds: int) -> dict[str, Measured]:
    """Every side answers every prompt in every round, in turns; one answer before them is not counted."""
    found = {side: Measured() for side in sides}
    for answer in sides.values():
        answer(prompts[0])
    for turn in range(rounds):
        for number, prompt in enumerate(prompts, 1):
            print(f"round {turn + 1} of {rounds}, prompt {number} of {len(prompts)} ...", file=sys.stderr)
            for side, answer in sides.items():
                found[side].answers.append(answer(prompt))
    return found


def _rows(name: str, found: dict[str, Measured]) -> list[dict[str, Any]]:
    rows = []
    for side, measured in found.items():
        values, row = measured.ms(), {}
        for word, peer in (("x alone", "alone"), ("x transformers", "transformers")):
            if peer in found:
                middle, low, high = ratio(values, found[peer].ms())
                row[word] = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        tpc = median(a.tpc for a in measured.answers)
        rows.append(
            {
                "prompts": name,
                "side": side,
                "ms/token": round(median(values), 2),
                "min to max": f"{min(values):.1f} to {max(values):.1f}",
                "wall": round(median(measured.ms("wall")), 1),
                **row,
                "TPC": "" if tpc != tpc else round(tpc, 2),
            }
        )
    return rows

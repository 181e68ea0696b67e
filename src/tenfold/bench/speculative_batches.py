"""`tenfold bench speculative-batches`: speculation as it is by default beside plain decoding, batch 1 to 64.

Both sides decode the same prompts together, greedily, in bf16 with one thread, and take turns. What is timed are the steps in
which every request is running, by the thread's processor (with `--threads 2` by the clock on the wall): tokens over
milliseconds. The default may choose no tree at all.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from tenfold.bench.speculative import MODEL, benchmark_prompts, sharing
from tenfold.bench.table import on_threads, ratio
from tenfold.language.decoding.engine import LLM
from tenfold.language.sampling.sampling import SamplingParams
from tenfold.language.tuning.tree_costs import step_clock

BATCHES, STEPS, EACH = (1, 2, 4, 8, 16, 32, 64), 24, 4


def run(rounds: int = 3, threads: int = 1) -> dict[str, Any]:
    """Tokens per second of both sides by batch, and their ratio."""
    with on_threads(threads):
        drafting = LLM(MODEL, "auto", weights="bf16", max_batch=max(BATCHES), cache_tokens=32768)
        sides = {"alone": sharing(drafting, None), "default": drafting}
        prompts = [prompt for some in benchmark_prompts(sides["alone"], EACH).values() for prompt in some]
        rows = [_row(sides, prompts, batch, rounds) for batch in BATCHES]
    worst = min(row["ratio"] for row in rows)
    return {
        "title": f"Speculation by default beside plain decoding, {MODEL}, greedy, bf16",
        "rows": rows,
        "notes": [
            f"Threads: {threads}; {STEPS} steps at most with all requests running; tokens a second "
            f"{'of CPU time' if threads == 1 else 'on the wall'}; ratio = median over {rounds} rounds in turns "
            "(smallest to largest).",
            f"Worst ratio: {worst:.2f}.",
        ],
    }


def _row(sides: dict[str, LLM], prompts: list[list[int]], batch: int, rounds: int) -> dict[str, Any]:
    costs: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, llm in sides.items():
            cost = _ms_a_token(llm, [prompts[(turn + i) % len(prompts)] for i in range(batch)])
            if turn:
                costs[name].append(cost)
    middle, low, high = ratio(costs["default"], costs["alone"])
    tree = sides["default"].engine.speculation.plan(batch, False, sides["default"].drafter)[0]
    return {
        "batch": batch,
        "nodes": tree.nodes,
        "alone": round(1e3 / median(costs["alone"]), 1),
        "default": round(1e3 / median(costs["default"]), 1),
        "ratio": round(middle, 3),
        "spread": f"{low:.2f} to {high:.2f}",
    }


def _ms_a_token(llm: LLM, prompts: list[list[int]]) -> float:
    engine, clock = llm.engine, step_clock()
    for i, prompt in enumerate(prompts):
        engine.add_request(f"bench-{i}", prompt, SamplingParams(max_tokens=512, ignore_eos=True))
    while sum(r.ready and r.stats.calls > 0 for r in engine.scheduler.running) < len(prompts):
        engine.step()  # until every prompt is in
    spent, tokens = 0.0, 0
    for _ in range(STEPS):
        started = clock()
        deltas = engine.step()
        spent += 1e3 * (clock() - started)
        tokens += sum(len(delta.token_ids) for delta in deltas)
    for i in range(len(prompts)):
        engine.abort(f"bench-{i}")
    return spent / tokens

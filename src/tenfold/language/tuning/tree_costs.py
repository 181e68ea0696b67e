"""Costs of a speculative decoding step on this machine: the table that `tree_search.search` weighs tokens per call against.

    costs = measure_costs(llm, prompts, batches=(1, 8))

The target's pass is timed at several widths, the drafter's at several numbers of rows, both behind texts of equal length;
whatever else a step does (choosing, verifying, bookkeeping, the drafter's pass over the accepted tokens) is the difference to
whole steps of the engine, with and without a tree. All are medians of repeats, interleaved. With one thread CPU time is taken,
which other processes on the machine disturb less than the clock on the wall.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from tenfold.inference.pages import PageAllocator, PagedCache
from tenfold.language.decoding.engine import LLM
from tenfold.language.drafting.protocol import Drafter
from tenfold.language.drafting.reference_trees import TREE_16
from tenfold.language.drafting.speculation import NONE, Speculation
from tenfold.language.drafting.tree import Tree
from tenfold.language.sampling.sampling import SamplingParams
from tenfold.language.tuning.tree_search import CostTable

WIDTHS = (1, 3, 5, 7, 9, 13, 17, 25, 33, 49)  # root and nodes
ROWS = (1, 2, 4, 8)  # inner nodes of a level
TEXT = 192  # tokens before them
REPEATS = 7


def measure_costs(llm: LLM, prompts: Sequence[Sequence[int]], batches: Sequence[int]) -> CostTable:
    """Milliseconds on this machine with the model's number format and torch's threads. prompts: at least one."""
    assert llm.drafter is not None, "the costs of drafting need a drafter"
    verify = {batch: _verify(llm, batch) for batch in batches}
    level = {batch: _level(llm.drafter, batch) for batch in batches}
    table = CostTable(verify, level, dict.fromkeys(batches, (0.0, 0.0)), llm.format)
    host = {}
    for batch in batches:
        few = [list(prompts[i % len(prompts)]) for i in range(batch)]
        plain, drafted = _steps(llm, few, NONE), _steps(llm, few, TREE_16)
        host[batch] = (
            max(0.0, plain - table.ms(batch, NONE)),
            max(0.0, drafted - table.ms(batch, TREE_16)),
        )
    return CostTable(verify, level, host, llm.format)


@torch.inference_mode()
def _verify(llm: LLM, batch: int) -> dict[int, float]:
    model, forward = llm.model, llm.engine.runner.forward
    weight, c = model.embedding.weight, model.config
    pages = PageAllocator(batch * -(-(TEXT + max(WIDTHS)) // 16))
    cache = PagedCache(c.depth, c.kv_heads, c.width, pages.count, 16, weight.dtype, weight.device)
    tables = [pages.open(TEXT + max(WIDTHS)) for _ in range(batch)]
    for table in tables:
        pages.cover(table, TEXT + max(WIDTHS))

    def run(width: int) -> Callable[[], object]:
        tokens = torch.randint(c.vocabulary, (batch, width))
        positions = (TEXT + torch.arange(width)).expand(batch, -1)
        mask = Tree.chain(width - 1).mask if width > 1 else None
        return lambda: forward(tokens, positions, cache.step(tables, [TEXT] * batch, [width] * batch), mask)

    return _medians({width: run(width) for width in WIDTHS})


@torch.inference_mode()
def _level(drafter: Drafter, batch: int) -> dict[int, float]:
    passes = {rows: drafter.level_pass(batch, rows, TEXT) for rows in ROWS}
    return _medians({rows: one for rows, one in passes.items() if one is not None}) or dict.fromkeys(ROWS, 0.0)


def _steps(llm: LLM, prompts: list[list[int]], tree: Tree, steps: int = 12) -> float:
    """Median milliseconds of the engine's decoding steps with every request running."""
    engine, kept = llm.engine, llm.engine.speculation
    engine.speculation = Speculation(tree=tree)
    try:
        for i, prompt in enumerate(prompts):
            engine.add_request(f"cost-{i}", prompt, SamplingParams(max_tokens=256, ignore_eos=True))
        engine.step()  # the prompts' own pass
        times, clock = [], step_clock()
        for _ in range(steps):
            started = clock()
            engine.step()
            times.append(clock() - started)
        return 1e3 * statistics.median(times)
    finally:
        for i in range(len(prompts)):
            engine.abort(f"cost-{i}")
        engine.speculation = kept


def _medians(runs: dict[int, Callable[[], object]]) -> dict[int, float]:
    """Median milliseconds of each, interleaved, after one run that is not counted."""
    times: dict[int, list[float]] = {at: [] for at in runs}
    clock = step_clock()
    for repeat in range(REPEATS + 1):
        for at, run in runs.items():
            started = clock()
            run()
            if repeat:
                times[at].append(clock() - started)
    return {at: 1e3 * statistics.median(values) for at, values in times.items()}


def step_clock() -> Callable[[], float]:
    """Seconds of this thread's CPU time where it does all the work, else those on the wall."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

"""`tenfold bench speculative-trees`: tokens per call and time that the tree search predicts beside what the engine does.

For a sweep of trees, batch 1, greedy, bf16: tokens per call by replay and milliseconds of a step from the cost table, beside
both measured in the engine on the same prompts; and whether the tree that the predictions choose is the fastest of the sweep.
Times are of the thread's processor, so that other processes disturb them little; trees take turns prompt by prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from tenfold.bench.speculative import MODEL, benchmark_prompts
from tenfold.bench.table import on_threads
from tenfold.language.decoding.engine import LLM, locate
from tenfold.language.drafting.drafter import default_aux_layers
from tenfold.language.drafting.hybrid_trees import HybridTree
from tenfold.language.drafting.reference_trees import TREE_10, TREE_16
from tenfold.language.drafting.speculation import SHIPPED, Speculation
from tenfold.language.drafting.tree import Tree
from tenfold.language.drafting.weights import load_drafter
from tenfold.language.models.prepare import open_target
from tenfold.language.sampling.sampling import SamplingParams
from tenfold.language.tuning.measure import Replayed, replay, write_greedily
from tenfold.language.tuning.tree_costs import measure_costs, step_clock
from tenfold.language.tuning.tree_picture import speed_svg

TOKENS, EACH = 96, 4
THREE = Tree.from_paths([[0], [1], [0, 0]])
SEVEN = Tree.from_paths([[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0]])
SWEEP = (
    *((Tree.chain(0), 0), (Tree.chain(1), 0), (Tree.chain(1), 2), (THREE, 0), (THREE, 4)),
    *((SEVEN, 0), (SEVEN, 4), (TREE_10, 6), (TREE_16, 0), (TREE_16, 8)),
)


def run(each: int = EACH) -> dict[str, Any]:
    """Predicted and measured figures of every tree of the sweep."""
    with on_threads(1):
        path = locate(MODEL)
        network, target, llm = load_drafter(SHIPPED), open_target(path, "bf16"), LLM(MODEL, "auto", weights="bf16")
        prompts = [prompt for some in benchmark_prompts(llm, each).values() for prompt in some]
        aux = network.config.aux_layers or default_aux_layers(target.model.config.depth)
        answers = write_greedily(target, prompts, llm.tokenizer.stop_ids, aux=aux, max_tokens=TOKENS)
        replayed = replay(network, target, answers)
        with torch.inference_mode():
            costs = measure_costs(llm, prompts, (1,))
        shapes = [HybridTree.of(own, k) if k else own for own, k in SWEEP]
        measured = _measure(llm, prompts, shapes)
    rows = []
    for (own, k), shape, (tpc, ms) in zip(SWEEP, shapes, measured, strict=True):
        predicted = (_tpc(replayed, shape), costs.ms(1, own, k))
        rows.append(
            {
                "drafted": own.nodes,
                "looked up": k,
                "TPC predicted": round(predicted[0], 3),
                "TPC measured": round(tpc, 3),
                "off by": f"{100 * (predicted[0] / tpc - 1):+.1f} %",
                "ms predicted": round(predicted[1], 2),
                "ms measured": round(ms, 2),
                "off": f"{100 * (predicted[1] / ms - 1):+.1f} %",
                "tokens/s predicted": round(1e3 * predicted[0] / predicted[1], 1),
                "tokens/s measured": round(1e3 * tpc / ms, 1),
            }
        )
    speeds = [row["tokens/s measured"] for row in rows]
    chosen = max(range(len(rows)), key=lambda i: rows[i]["tokens/s predicted"])
    good_tpc = sum(abs(row["TPC predicted"] / row["TPC measured"] - 1) <= 0.05 for row in rows)
    good_ms = sum(abs(row["ms predicted"] / row["ms measured"] - 1) <= 0.15 for row in rows)
    points = [
        (own.nodes + k + 1, row["tokens/s measured"], row["tokens/s predicted"]) for (own, k), row in zip(SWEEP, rows)
    ]
    return {
        "title": f"Trees for {MODEL}: predicted and measured, batch 1, greedy, bf16",
        "rows": rows,
        "notes": [
            f"{len(prompts)} prompts, {TOKENS} tokens an answer at most; one thread; ms of CPU time, median over steps.",
            f"TPC within 5 % for {good_tpc} of {len(rows)} trees, ms within 15 % for {good_ms}.",
            f"Chosen: {rows[chosen]['drafted']} drafted and {rows[chosen]['looked up']} looked up, at "
            f"{100 * speeds[chosen] / max(speeds):.1f} % of the fastest of the sweep.",
        ],
        "picture": speed_svg(points),
    }


def _tpc(replayed: Replayed, shape: Tree | HybridTree) -> float:
    return replayed.tpc(shape, range(len(replayed.answers)))


def _measure(llm: LLM, prompts: Sequence[list[int]], shapes: Sequence[Tree | HybridTree]) -> list[tuple[float, float]]:
    """(TPC, milliseconds of a step) of every shape through the engine."""
    tokens, calls, times = [0] * len(shapes), [0] * len(shapes), [[] for _ in shapes]
    clock, engine = step_clock(), llm.engine
    for prompt in prompts:
        for i, tree in enumerate(shapes):
            engine.speculation = Speculation(tree=tree)
            engine.add_request("bench", prompt, SamplingParams(max_tokens=TOKENS))
            first = True
            while engine.busy:
                started = clock()
                deltas = engine.step()
                if not first:  # the first step has the prompt's pass in it
                    times[i].append(1e3 * (clock() - started))
                first = False
                for delta in deltas:
                    if delta.stats is not None:
                        tokens[i] += delta.stats.tokens
                        calls[i] += delta.stats.calls
    return [(t / c, median(ms)) for t, c, ms in zip(tokens, calls, times, strict=True)]

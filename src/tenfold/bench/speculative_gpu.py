"""`tenfold bench speculative-gpu`: a step's time on a GPU, with random weights of Llama-3.1-8B's shape.

Random weights predict nothing, so a coin decides what is accepted (`Speculation(simulated_accept=)`): these are times of
steps, not of texts, and no figure here says how often anything is accepted. Sides take turns; what is timed are steps of the
whole engine, host included, on the wall:

    recorded    steps as CUDA graphs, the host one step behind (language/decoding/async_steps.py)
    eager       the same operations, started one by one
    limit       the weights that a step reads, over the rate at which this device reads memory

`idle` is the part of the time in which no kernel ran, by torch's profiler.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from tenfold.bench.table import ratio
from tenfold.language.commands import read_rate
from tenfold.language.decoding.engine import LLMEngine
from tenfold.language.drafting.drafter import config_for, make_drafter
from tenfold.language.drafting.protocol import Drafter
from tenfold.language.drafting.reference_trees import TREE_16
from tenfold.language.drafting.speculation import NONE, Speculation, with_trees
from tenfold.language.drafting.tree import Tree
from tenfold.language.drafting.tree_drafter import TreeDrafter
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.llama import Llama
from tenfold.language.models.prepare import weight_bytes
from tenfold.language.sampling.sampling import SamplingParams
from tenfold.nn.rope import RopeScaling

SHAPE = LlamaConfig(
    vocabulary=128256,
    dim=4096,
    hidden=14336,
    depth=32,
    heads=32,
    kv_heads=8,
    rope_theta=500000.0,
    rope_scaling=RopeScaling("llama3", 8.0),
    context=2048,
)
DRAFTED, ACCEPT, PROMPT, STEPS = 32000, 0.7, 256, 40
BATCHES = (1, 2, 4, 8, 16, 32, 64)
MARKS = "marks: alone, batch 1, at least 60 % of the limit (wanted 75 %); idle below 10 % (wanted 5 %)"


def run(rounds: int = 3) -> dict[str, Any]:
    """Milliseconds a step and tokens a second by batch; without CUDA a table without rows that says so."""
    title = "A step of Llama-3.1-8B's shape on a GPU, bf16, random weights, acceptance simulated"
    if not torch.cuda.is_available():
        return {"title": title, "rows": [], "notes": ["not measured: this machine has no CUDA"]}
    device = torch.device("cuda")
    target, drafter = models(SHAPE, device)
    return {"title": title, **measure(target, drafter, BATCHES, STEPS, rounds)}


def models(config: LlamaConfig, device: torch.device) -> tuple[Llama, Drafter]:
    """A random target and a random drafter in bf16, made where they stay."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            target = Llama(config).eval().requires_grad_(False)
            reduced = min(DRAFTED, config.vocabulary)
            network = make_drafter(config_for(config, draft_vocabulary=reduced))
    finally:
        torch.set_default_dtype(before)
    return target, with_trees(TreeDrafter(network, target), "bf16", device)


def measure(target: Llama, drafter: Drafter, batches: tuple[int, ...], steps: int, rounds: int) -> dict[str, list[Any]]:
    """Rows and notes. Every side has an engine of its own over the same weights."""
    rate = read_rate(target.embedding.weight.device)
    limit = weight_bytes(target) / rate / 1e6
    rows = [_alone(target, batches[0], steps, rounds, limit)]
    rows += [_drafted(target, drafter, batch, steps, rounds, limit) for batch in batches]
    notes = [
        f"{steps} steps with all requests running behind {PROMPT} tokens, {rounds} rounds in turns; medians; ratio = median "
        "(smallest to largest); first row: alone, recorded against eager; the others: with the drafter against alone, both "
        f"recorded; acceptance simulated with {ACCEPT} a node: times of steps, not of texts",
        f"limit {limit:.2f} ms: {weight_bytes(target) / 1e9:.1f} GB of weights at {rate:.0f} GB/s read",
        MARKS,
    ]
    return {"rows": rows, "notes": notes}


def _alone(target: Llama, batch: int, steps: int, rounds: int, limit: float) -> dict[str, Any]:
    recorded, eager = _engine(target, None, NONE, batch), _engine(target, None, NONE, batch)
    assert eager.async_steps is not None
    eager.async_steps.resident.graphs = None
    ours, theirs = _turns({"recorded": recorded, "eager": eager}, batch, steps, rounds).values()
    return _line("alone, against eager", batch, 0, ours, theirs, limit, _idle(recorded, batch, steps))


def _drafted(target: Llama, drafter: Drafter, batch: int, steps: int, rounds: int, limit: float) -> dict[str, Any]:
    tree = TREE_16 if batch == 1 else Speculation().plan(batch, False, drafter)[0].fixed
    assert tree is not None, "a trained drafter has the same tree for every text"
    sides = {"drafter": _engine(target, drafter, tree, batch), "alone": _engine(target, None, NONE, batch)}
    ours, theirs = _turns(sides, batch, steps, rounds).values()
    return _line(
        "drafter, against alone", batch, tree.nodes, ours, theirs, limit, _idle(sides["drafter"], batch, steps)
    )


def _line(
    side: str,
    batch: int,
    nodes: int,
    ours: list[tuple[float, float]],
    theirs: list[tuple[float, float]],
    limit: float,
    idle: float | None,
) -> dict[str, Any]:
    """ours and theirs: (milliseconds a step, milliseconds a token) of every round."""
    middle, low, high = ratio([token for _, token in ours], [token for _, token in theirs])
    step = median(step for step, _ in ours)
    return {
        "side": side,
        "batch": batch,
        "nodes": nodes,
        "ms a step": round(step, 2),
        "tokens/s": round(1e3 / median(token for _, token in ours), 1),
        "ratio": round(middle, 2),
        "spread": f"{low:.2f} to {high:.2f}",
        "of the limit": f"{limit / step:.0%}",
        "idle": "not seen" if idle is None else f"{idle:.0%}",
    }


def _engine(target: Llama, drafter: Drafter | None, tree: Tree, batch: int) -> LLMEngine:
    simulated = None if drafter is None else ACCEPT
    room = batch * (PROMPT + 4 * STEPS * (tree.height + 1) + 2 * tree.nodes + 64)
    return LLMEngine(
        target,
        None,
        drafter,
        speculation=Speculation(tree, simulated_accept=simulated),
        max_batch=batch,
        cache_tokens=room,
        prefix_tokens=0,
        async_scheduling=True,
    )


def _turns(sides: dict[str, LLMEngine], batch: int, steps: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, engine in sides.items():
            with_all = _steps(engine, batch, steps)
            if turn:
                found[name].append(with_all)
    return found


def _steps(
    engine: LLMEngine, batch: int, steps: int, around: Callable[[Callable[[], None]], object] | None = None
) -> tuple[float, float]:
    """Milliseconds a step and a token, once all requests run. around: runs the timed part (a profiler)."""
    vocabulary = engine.runner.model.config.vocabulary
    draw = torch.Generator().manual_seed(batch)
    params = SamplingParams(max_tokens=4 * STEPS * 8, ignore_eos=True)
    for i in range(batch):
        engine.add_request(f"bench-{i}", torch.randint(vocabulary, (PROMPT,), generator=draw).tolist(), params)
    while sum(r.ready and r.stats.calls > 2 for r in engine.scheduler.running) < batch:
        engine.step()
    tokens = 0

    def timed() -> None:
        nonlocal tokens
        for _ in range(steps):
            tokens += sum(len(delta.token_ids) for delta in engine.step())

    started = time.perf_counter()
    around(timed) if around else timed()
    spent = 1e3 * (time.perf_counter() - started)
    for i in range(batch):
        engine.abort(f"bench-{i}")
    while engine.async_steps is not None and engine.async_steps.in_flight:
        engine.async_steps.finish_oldest()
    return spent / steps, spent / tokens


def _idle(engine: LLMEngine, batch: int, steps: int) -> float | None:
    """The part of the steps' time, from the first kernel to the last, in which no kernel ran."""
    if engine.runner.device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    spans: list[tuple[float, float]] = []

    def around(work: Callable[[], None]) -> None:
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            work()
            torch.cuda.synchronize()
        on_device = [e for e in seen.events() or [] if str(e.device_type).endswith("CUDA")]
        spans.extend((e.time_range.start, e.time_range.end) for e in on_device)

    _steps(engine, batch, steps, around)
    busy, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    whole = reached - min(start for start, _ in spans)
    return 1 - busy / whole

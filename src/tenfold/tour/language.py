"""The tour's language panels: speculative decoding of a real model, and two short trainings of sparse and memory layers."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from html import escape
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from tenfold.engine.report import Report
from tenfold.tour.page import say

if TYPE_CHECKING:
    from torch import Tensor

    from tenfold.language.drafting.protocol import Draft
    from tenfold.language.drafting.tree import Tree
    from tenfold.language.pretraining.pretrain import PretrainRecipe

PROMPTS = (
    "A baker makes 12 loaves an hour for 5 hours and sells 41 of them. How many are left?",
    "Write three sentences about a walk by the sea.",
    "List the planets of the solar system, one per line.",
)
TOKENS = 96


def speculation_panel() -> Report:
    """The same answers with and without a drafter: passes of the target, times, and one tree with what stood of it."""
    from tenfold.language.decoding.engine import LLM
    from tenfold.language.sampling.sampling import SamplingParams

    say("fetching SmolLM2-135M-Instruct (98 MB, once) and answering three prompts twice")
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS)
    plain, drafted = (LLM("smollm2-135m-instruct", drafter=drafter, weights="fp32") for drafter in (None, "auto"))
    report = Report("speculation")
    rows, trees = [], []
    for prompt in PROMPTS:
        ids = plain.tokenizer.chat([{"role": "user", "content": prompt}])
        alone, _, alone_seconds = _answer(plain, ids, params)
        text, stats, seconds = _answer(drafted, ids, params, trees)
        rows.append(
            {
                "prompt": prompt,
                "same text": "yes" if text == alone else "no",
                "tokens per pass": f"{stats.tokens_per_call:.2f}",
                "seconds alone": f"{alone_seconds:.2f}",
                "seconds with drafts": f"{seconds:.2f}",
                "answer": text,
            }
        )
    report.text(
        f"SmolLM2-135M-Instruct answers; {drafted.notes[1]}. Weights in {drafted.format}, so that the texts can be compared to "
        "the letter: guessed tokens are checked by the target in one pass, and what stands is the target's own. In this "
        "format a processor is bound by arithmetic, so a drafter saves passes here and little time; tenfold bench "
        "speculative measures time in bf16."
    )
    report.table("three prompts, greedy", rows)
    best = max(trees, key=lambda tree: len(tree[2]), default=None)
    if best is not None:
        report.svg("one draft: what the target accepted is filled", tree_svg(*best, words=plain.tokenizer.decode))
    return report


def _answer(llm: Any, ids: list[int], params: Any, trees: list[Any] | None = None) -> tuple[str, Any, float]:
    """Text, stats and seconds of one greedy answer; `trees` gets (tree, tokens, accepted path) of every step."""
    runner = llm.engine.runner
    watched = _Watched(runner.drafter) if trees is not None and runner.drafter is not None else None
    if watched is not None:
        runner.drafter = watched
    text, stats, start = "", None, monotonic()
    try:
        for delta in llm.stream(ids, params):
            text += delta.text
            stats = delta.stats or stats
            if watched is not None and trees is not None and watched.last is not None:
                tree, tokens = watched.last
                trees.append((tree, tokens, accepted_path(tree, tokens, delta.token_ids)))
                watched.last = None
    finally:
        if watched is not None:
            runner.drafter = watched.inner
    return text, stats, monotonic() - start


class _Watched:
    """A drafter whose last draft can be looked at."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.features, self.aux_layers = inner, inner.features, inner.aux_layers
        self.extend, self.open = inner.extend, inner.open
        self.last: tuple[Tree, list[int]] | None = None

    def draft(self, states: Any, tree: Tree, rule: Any, temperatures: Tensor, uniforms: Any) -> Draft:
        made = self.inner.draft(states, tree, rule, temperatures, uniforms)
        self.last = (tree, [-1, *made.tokens[0].tolist()])
        return made


def accepted_path(tree: Tree, tokens: Sequence[int], emitted: Sequence[int]) -> list[int]:
    """The nodes that stood: from the root down, the child whose token was emitted."""
    path, node = [], 0
    for token in emitted:
        children = [c for c in range(1, len(tree.parents)) if tree.parents[c] == node and tokens[c] == token]
        if not children:
            break
        node = children[0]
        path.append(node)
    return path


def tree_svg(tree: Tree, tokens: Sequence[int], path: Sequence[int], words: Any) -> str:
    """The tree from left to right, one column per depth."""
    depth = tree.depth.tolist()
    drawn = [n for n in range(len(tree.parents)) if n == 0 or tokens[n] >= 0]
    columns: dict[int, list[int]] = {}
    for node in drawn:
        columns.setdefault(depth[node], []).append(node)
    height = 26 * max(len(column) for column in columns.values()) + 20
    place = {
        node: (20 + 110 * level, height * (i + 0.5) / len(column))
        for level, column in columns.items()
        for i, node in enumerate(column)
    }
    stood = {0, *path}
    parts = []
    for node in drawn[1:]:
        (x1, y1), (x2, y2) = place[tree.parents[node]], place[node]
        color, width = ("#1a7f37", 2.5) if node in stood else ("#bbb", 1)
        parts.append(f'<path d="M{x1} {y1:.0f}L{x2} {y2:.0f}" stroke="{color}" stroke-width="{width}" fill="none"/>')
    for node in drawn:
        x, y = place[node]
        fill = "#1a7f37" if node in stood else "#fff"
        word = "root" if node == 0 else words([tokens[node]]).replace("\n", "⏎") or "·"
        parts.append(f'<circle cx="{x}" cy="{y:.0f}" r="5" fill="{fill}" stroke="#444"/>')
        parts.append(f'<text x="{x + 8}" y="{y + 4:.0f}" font-size="12">{escape(word[:14])}</text>')
    wide = 150 + 110 * max(columns)
    return f'<svg viewBox="0 0 {wide} {height}" width="{wide}" role="img">{"".join(parts)}</svg>'


def sparsity_panel(out: Path, minutes: float) -> Report:
    """A byte model with Squared-ReLU, dense first and then 2:4 sparse, on the Python standard library."""
    from tenfold.language.recipes import lm_relu2_24

    report = Report("sparsity")
    recipe = lm_relu2_24()
    run, metrics, steps = _train("lm-relu2-24", recipe, out, minutes)
    report.text(
        f"A language model of bytes learned the sources of Python's standard library for {steps} steps; after the first "
        "tenth, of every four hidden units of its feed-forward networks at most two stay. Zeros is the share of units that "
        "are exactly zero by themselves; lost is the share of activation mass that keeping two of four takes away."
    )
    report.table(
        "held-back text, nats per byte",
        [
            {"model": "after this training, 2:4 sparse", "nats": f"{metrics['nats_per_byte']:.3f}"},
            {"model": "byte frequencies alone", "nats": f"{metrics['floor']:.3f}"},
        ],
    )
    layers = sorted({name.removesuffix(".zeros") for name in metrics if name.endswith(".zeros")})
    report.table(
        "by layer",
        [
            {"layer": n, "zeros": f"{metrics[f'{n}.zeros']:.1%}", "lost": f"{metrics[f'{n}.dropped']:.2%}"}
            for n in layers
        ],
    )
    report.plot("loss", {"training": [(r["step"], r["loss"]) for r in _lines(run) if "loss" in r]}, y="nats")
    return report


def memory_panel(out: Path, minutes: float) -> Report:
    """Generated facts, learned by a dense model and by one with memory layers, step for step the same."""
    from tenfold.language.pretraining.fact_mixing import FactsConfig
    from tenfold.language.recipes import lm_memory_plus, lm_relu2_dense

    facts = FactsConfig("world", share=0.9, entities=100, relations=8, values=256)
    report, curves = Report("memory"), {}
    steps = 0
    for name, recipe in (("memory layers", lm_memory_plus()), ("dense", lm_relu2_dense())):
        model = dataclasses.replace(recipe.model, depth=4)
        recipe = dataclasses.replace(recipe, model=model, facts=facts, val_tokens=2048)
        run, _, steps = _train(f"lm-{name.replace(' ', '-')}", recipe, out, minutes / 2, steps)
        curves[name] = [(r["step"], r["facts_recall"]) for r in _lines(run) if "facts_recall" in r]
        curves[name + ", facts never told"] = [(r["step"], r["facts_floor"]) for r in _lines(run) if "facts_floor" in r]
    report.text(
        f"Both models saw the same {facts.entities * facts.relations:,} generated facts for {steps} steps and were asked "
        "in a form that each fact was never told in. The memory layers read 64 of 16,384 rows of a shared table per token. "
        "At this size the facts fit the dense model too: the picture shows how fast they are learned. Multiplications are "
        "not matched here; tenfold bench memory-recall matches them."
    )
    report.table("recall at the end, per cent", [{"model": n, "recall": f"{c[-1][1]:.1f}"} for n, c in curves.items()])
    report.plot("recall of facts, per cent", curves, y="per cent")
    return report


def _train(name: str, recipe: PretrainRecipe, out: Path, minutes: float, steps: int = 0) -> tuple[Path, Any, int]:
    """Trains for about so many minutes, or exactly `steps`; the run folder, the last metrics and the steps."""
    from tenfold.training import run_recipe

    if steps == 0:
        steps = max(40, min(recipe.trainer.steps, round(60 * minutes / _seconds_per_step(recipe))))
    say(f"training {name} for {steps} steps, about {minutes:.1f} minutes")
    trainer = dataclasses.replace(
        recipe.trainer, steps=steps, validate_every=max(1, steps // 8), checkpoint_every=steps, log_every=10
    )
    run = out / name
    shutil.rmtree(run, ignore_errors=True)
    return run, run_recipe(name, dataclasses.replace(recipe, trainer=trainer), run), steps


def _seconds_per_step(recipe: PretrainRecipe) -> float:
    """Median time of a few real steps on this machine, without the optimizer."""
    import torch

    from tenfold.engine.task import Shard

    task = recipe.make_task()
    torch.manual_seed(0)
    model, batches = task.build(), iter(task.batches(Shard()))
    seconds = []
    for _ in range(6):
        start = monotonic()
        task.training_step(model, next(batches), task.phases[0])["loss"].backward()
        seconds.append(monotonic() - start)
    return 1.3 * sorted(seconds[1:])[2]  # the optimizer and the validations are about the rest


def _lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

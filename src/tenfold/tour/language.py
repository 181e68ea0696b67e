"""The tour's language model panels: short pretraining runs with 2:4 activation sparsity and with memory layers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tenfold.engine.report import Report
from tenfold.tour.runs import seconds_per_step, train


def sparsity_panel(out: Path, minutes: float) -> Report:
    """A byte model with Squared-ReLU, dense first and then 2:4 sparse, on the Python standard library."""
    from tenfold.language.recipes import lm_relu2_24

    recipe = dataclasses.replace(lm_relu2_24(), val_tokens=8192)
    steps = max(40, min(recipe.trainer.steps, round(60 * minutes / seconds_per_step("lm-relu2-24", recipe))))
    run = train("lm-relu2-24", recipe, out / "lm-relu2-24", steps, validations=2)
    metrics, report = run.metrics, Report("sparsity")
    report.text(
        f"A language model of bytes learned the sources of Python's standard library for {steps} steps; after the first "
        "tenth, of every four hidden units of its feed-forward networks at most two are kept. Zeros is the share of units that "
        "are exactly zero by themselves; lost is the share of activation mass that keeping two of four takes away."
    )
    report.table(
        "held-back text, nats per byte",
        [
            {"model": "after this training, 2:4 sparse", "nats": f"{metrics['nats_per_byte']:.3f}"},
            {"model": "baseline: byte frequencies only", "nats": f"{metrics['floor']:.3f}"},
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
    report.plot("loss", {"training": run.curve("loss")}, y="nats per byte")
    return report


def memory_panel(out: Path, minutes: float) -> Report:
    """Generated facts, learned by a dense model and by one with memory layers, step for step the same."""
    from tenfold.language.pretraining.fact_mixing import FactsConfig
    from tenfold.language.recipes import lm_memory_plus, lm_relu2_dense

    facts = FactsConfig("world", share=0.9, entities=100, relations=8, values=256)
    recipes = {
        name: dataclasses.replace(
            recipe, model=dataclasses.replace(recipe.model, depth=4), facts=facts, val_tokens=2048
        )
        for name, recipe in (("memory layers", lm_memory_plus()), ("dense", lm_relu2_dense()))
    }
    seconds = sum(seconds_per_step(name, recipe) for name, recipe in recipes.items())
    steps = max(40, min(recipes["dense"].trainer.steps, round(60 * minutes / seconds)))
    report, curves, rows = Report("memory"), {}, []
    for name, recipe in recipes.items():
        run = train(name, recipe, out / f"lm-{name.replace(' ', '-')}", steps, validations=6)
        curves[name] = run.curve("facts_recall")
        curves[f"{name}, facts never trained"] = run.curve("facts_floor")
        recall, floor = run.metrics["facts_recall"], run.metrics["facts_floor"]
        rows.append({"model": name, "recall": f"{recall:.1f}", "baseline: facts never trained": f"{floor:.1f}"})
    report.text(
        f"Both models saw the same {facts.entities * facts.relations:,} generated facts for {steps} steps and were asked "
        "in a form in which no fact was trained. The memory layers read 64 of 16,384 rows of a shared table per token. "
        "At this size the facts fit the dense model too: the picture shows how fast they are learned. Multiplications are "
        "not matched here; tenfold bench memory-recall matches them."
    )
    report.table("recall at the end, per cent", rows)
    report.plot("recall of facts", curves, y="per cent")
    return report

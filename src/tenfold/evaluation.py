"""`tenfold eval TASK`: scores on a task, beside what costs nothing (raw pixels, the untrained network, chance, ...).

    tenfold eval                                              lists the tasks
    tenfold eval knn --help                                   the flags of one
    tenfold eval knn runs/dinov3-mini --train train.parquet --val val.parquet --report scores/

A task is a function of one dataclass, which has its flags, and returns {what: value}. It stands in its wing; to add one, write
the pair and add a line here.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tenfold.errors import UsageError
from tenfold.registry import Registry

if TYPE_CHECKING:
    from tenfold.engine.report import Report

TASKS = Registry("evaluation")
TASKS.add("knn", "tenfold.vision.evaluate:knn", "weighted k-NN on labelled images")
TASKS.add("linear", "tenfold.vision.evaluate:linear", "linear probe on labelled images")
TASKS.add("attentive", "tenfold.vision.evaluate:attentive", "attentive probe on labelled images")
TASKS.add("retrieval", "tenfold.vision.evaluate:retrieval", "mean average precision among labelled images")
TASKS.add("zeroshot", "tenfold.vision.evaluate_text:zeroshot", "classes by sentences, without a labelled image")
TASKS.add("segmentation", "tenfold.vision.evaluate_dense:segmentation", "linear probe for a class of every pixel")
TASKS.add("depth", "tenfold.vision.evaluate_dense:depth", "linear probe for a depth of every pixel")
TASKS.add("discovery", "tenfold.vision.evaluate_dense:discovery", "the object that features find unasked")
TASKS.add("tracking", "tenfold.vision.evaluate_dense:tracking", "labels carried through a clip")
TASKS.add("matching", "tenfold.vision.evaluate_dense:match_stereo", "matches on the sample stereo pair")
TASKS.add("text", "tenfold.language.pretraining.evaluate_text:text", "loss of a language model in nats per byte")
TASKS.add("blimp", "tenfold.language.pretraining.evaluate_text:blimp", "grammatical minimal pairs")
TASKS.add("nq", "tenfold.language.pretraining.evaluate_text:nq", "exact match on open questions")
TASKS.add("facts", "tenfold.language.memory_commands:facts", "recall of the generated facts of a run")
TASKS.add("factbook", "tenfold.language.memory_commands:factbook", "recall of real facts, beside chance")
TASKS.add(
    "speculative", "tenfold.language.evaluations:speculative", "tokens per call of a drafter, beside prompt lookup"
)


def evaluate(args: list[str]) -> int:
    """The verb. Its flags depend on the task, so it parses its own words."""
    if not args or args[0] in ("-h", "--help"):
        print(_listing())
        return 0
    if args[0].startswith("-"):
        raise UsageError(f"{args[0]} comes before the task. Type: tenfold eval TASK WEIGHTS {args[0]} ...")
    import tyro

    from tenfold.flags import name_places, parse

    task = TASKS.load(args[0])
    kind, prog = typing.get_type_hints(task)["options"], f"tenfold eval {args[0]}"
    config = (tyro.conf.FlagCreatePairsOff,)
    if {"-h", "--help"} & set(args):
        name_places(kind)
        tyro.cli(_with_report(kind, explained=True), args=["--help"], prog=prog, config=config)
    options: Any = parse(_with_report(kind), args[1:], prog, config=config)
    result = task(options)
    if options.report is not None:
        evaluation_report(f"tenfold eval {' '.join(args)}", result).write(options.report)
    if options.json:
        print(json.dumps(result, indent=2))
        return 0
    for name, value in result.items():
        print(f"{name:<44} {value:8.2f}" if isinstance(value, float) else f"{name:<44} {value!s:>8}")
    return 0


def _with_report(kind: type, explained: bool = False) -> type:
    """The task's flags, and the one that all tasks have. explained: for --help, where tyro finds the comments of fields only
    in a class that stands in a file, so the task's class is a part of the made one here instead of its base."""
    import tyro

    said = "also write report.html, report.md and report.json into this folder"
    fields: list[Any] = [("report", Annotated[Path | None, tyro.conf.arg(help=said)], dataclasses.field(default=None))]
    if explained:
        fields.insert(0, ("options", Annotated[kind, tyro.conf.arg(name="")]))
    namespace = {"__doc__": kind.__doc__}
    bases = () if explained else (kind,)
    return dataclasses.make_dataclass(kind.__name__, fields, bases=bases, frozen=True, namespace=namespace)


def evaluation_report(title: str, result: Mapping[str, Any]) -> Report:
    """What a task returned as a page. Scores named "measure, side" become one table with a row for each side, so that the
    baselines are next to the weights; what is left are single figures, and those in words."""
    from tenfold.engine.report import Report

    report = Report(title)
    sides: dict[str, dict[str, Any]] = {}
    measures: dict[str, int] = {}
    for name, value in result.items():
        measure, comma, side = name.partition(", ")
        if comma and isinstance(value, float):
            sides.setdefault(side, {})[measure] = value
            measures[measure] = measures.get(measure, 0) + 1
    if any(count > 1 for count in measures.values()):
        report.table("scores", [{"features": side} | {m: row.get(m) for m in measures} for side, row in sides.items()])
    else:
        measures = {}
    single = {name: value for name, value in result.items() if name.partition(", ")[0] not in measures}
    figures = {n: v for n, v in single.items() if not isinstance(v, str) or v.replace(".", "").isdigit()}
    if figures:
        report.table("figures", [{"figure": name, "value": value} for name, value in figures.items()])
    if len(figures) < len(single):
        report.table("in words", [{"what": n, "result": v} for n, v in single.items() if n not in figures])
    return report


def _listing() -> str:
    width = max(len(entry.name) for entry in TASKS) + 2
    lines = [f"  {entry.name:<{width}}{entry.summary}" for entry in TASKS]
    return "\n".join(
        [
            "tenfold eval TASK WEIGHTS [--flag value ...]     (tenfold eval TASK --help lists the flags)",
            "WEIGHTS is any file or folder of weights that tenfold reads, or a run folder. Baselines are beside every score.",
            *lines,
        ]
    )

"""`tenfold eval TASK`: scores on a task, beside what costs nothing (raw pixels, the untrained network, chance, ...).

tenfold eval                                              lists the tasks
tenfold eval knn --help                                   the flags of one
tenfold eval knn runs/dinov3-mini --train train.parquet --val val.parquet

A task is a function of one dataclass, which has its flags, and returns {what: value}. It stands in its wing; to add one, write
the pair and add a line here.
"""

from __future__ import annotations

import json
import typing
from typing import Any

from tenfold.errors import UsageError
from tenfold.registry import Registry

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
TASKS.add("factbook", "tenfold.language.memory_commands:factbook", "recall of real facts, beside guessing")
TASKS.add("speculative", "tenfold.language.evaluations:speculative", "tokens per call of a drafter, beside look-up")


def evaluate(args: list[str]) -> int:
    """The verb. Its flags depend on the task, so it parses its own words."""
    if not args or args[0] in ("-h", "--help"):
        print(_listing())
        return 0
    if args[0].startswith("-"):
        raise UsageError(f"{args[0]} comes before the task. Type: tenfold eval TASK WEIGHTS {args[0]} ...")
    import tyro

    from tenfold.flags import parse

    task = TASKS.load(args[0])
    kind, prog = typing.get_type_hints(task)["options"], f"tenfold eval {args[0]}"
    options: Any = parse(kind, args[1:], prog, config=(tyro.conf.FlagCreatePairsOff,))
    result = task(options)
    if options.json:
        print(json.dumps(result, indent=2))
        return 0
    for name, value in result.items():
        print(f"{name:<44} {value:8.2f}" if isinstance(value, float) else f"{name:<44} {value}")
    return 0


def _listing() -> str:
    width = max(len(entry.name) for entry in TASKS) + 2
    lines = [f"  {entry.name:<{width}}{entry.summary}" for entry in TASKS]
    return "\n".join(
        [
            "tenfold eval TASK WEIGHTS [--flag value ...]     (tenfold eval TASK --help lists the flags)",
            "WEIGHTS is any file or folder of weights that tenfold reads, or a run folder. Floors stand beside every score.",
            *lines,
        ]
    )

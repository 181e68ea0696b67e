"""Every `--flag` that the source, the README or a page of docs names exists in some command."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import tokenize
import typing
from functools import cache
from pathlib import Path

import pytest

from tenfold.cli import VERBS
from tenfold.evaluation import TASKS
from tenfold.flags import flags_of, former_flags
from tenfold.registry import recipes

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src/tenfold").rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FLAG = re.compile(r"(?<![\w(-])--([a-z][a-z0-9_]*(?:[-.][a-z0-9_]+)*)\b(?!:)")  # --name: is CSS
WITHOUT_FIELD = {
    "help": "tyro's",
    "version": "of the command line itself",
    "resume": "tenfold train --resume RUN reads its own words",
    "replay": "tenfold train --replay CAPTURE",
    "size": "a parameter of the recipe's function",
    "out": "the run folder of tenfold train",
    "report": "of all tasks of tenfold eval",
    "model.kind": "tenfold train reads which backbone before the flags, which depend on it",
}
OTHERS = {
    **dict.fromkeys(("only-binary", "implementation", "python-version", "platform", "abi", "no-deps"), "pip download"),
    **dict.fromkeys(("no-input", "disable-pip-version-check"), "pip"),
    **dict.fromkeys(("always", "dirty", "abbrev"), "git describe"),
    "nproc-per-node": "torchrun",
    "head": "ray start",
    "field": "stands for any field of a recipe: tenfold train RECIPE --field value",
    "flag": "stands for any flag of a task: tenfold eval TASK WEIGHTS --flag value",
    "limt": "the misspelling of an example in flags.py",
    "model-path": "SGLang",
    "speculative-algorithm": "SGLang",
    "speculative-draft-model-path": "SGLang",
    "speculative-num-steps": "SGLang",
    "speculative-eagle-topk": "SGLang",
    "speculative-num-draft-tokens": "SGLang",
    "speculative-config": "vLLM",
    **dict.fromkeys(("ink", "page", "soft", "rule", "fill"), "CSS variables of the report's page"),
}
TODAY = {"docs/LOG.md", "docs/benchmarks"}  # journals: what a flag was named on the day stays


@cache
def existing() -> set[str]:
    kinds = []
    for registry in (VERBS, TASKS):
        for entry in registry:
            options = typing.get_type_hints(entry.load()).get("options")
            if options is not None:  # train and eval parse their own words
                kinds.append(options)
    sized = 0
    for entry in recipes:
        build = entry.load()
        sized += "size" in inspect.signature(build).parameters
        kinds.append(type(build()))
    assert sized
    names = set(WITHOUT_FIELD)
    for kind in kinds:
        flags = flags_of(kind)
        former = former_flags(kind)
        names |= flags.keys() | former.keys()
        for name, hint in flags.items():
            if hint is bool:
                group, dot, last = name.rpartition(".")
                names.add(f"{group}{dot}no-{last}")
        for name in (*flags, *former):
            parts = name.split(".")
            names |= {".".join(parts[:i]) for i in range(1, len(parts))}  # `--optim.*` names a group
    return names


def texts(path: Path) -> list[tuple[int, str]]:
    """What a file says to a reader: of Python strings, docstrings and comments, by line."""
    if path.suffix != ".py":
        return list(enumerate(path.read_text().splitlines(), 1))
    source = path.read_text()
    found = [
        (node.lineno, node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    with path.open("rb") as file:
        return found + [(t.start[0], t.string) for t in tokenize.tokenize(file.readline) if t.type == tokenize.COMMENT]


@pytest.mark.parametrize("kind", ["source", "pages"])
def test_every_flag_that_is_named_exists(kind: str) -> None:
    unknown, count = [], 0
    for path in SOURCES if kind == "source" else PAGES:
        place = path.relative_to(ROOT)
        if any(place.as_posix().startswith(journal) for journal in TODAY):
            continue
        for line, text in texts(path):
            for flag in FLAG.findall(text):
                count += 1
                if flag.replace("_", "-") not in existing() and flag not in OTHERS:
                    unknown.append(f"{place}:{line}: --{flag}")
    assert count > 40, "the search finds nothing, so it would pass whatever is written"
    assert not unknown, "\n".join(unknown)


def test_a_flag_that_does_not_exist_is_found() -> None:
    assert FLAG.findall("give --keep-answers or `--rollouts.keep`, not a-b--c or ----") == [
        "keep-answers",
        "rollouts.keep",
    ]
    assert "keep-answers" not in existing()
    assert "rollouts.keep" in existing()
    assert "optim.lr" in existing()


def test_dataclasses_of_verbs_are_those_that_are_parsed() -> None:
    for entry in VERBS:
        hints = typing.get_type_hints(entry.load())
        assert "args" in hints or dataclasses.is_dataclass(hints["options"]), entry.name

"""The README and the pages tell the truth: table and tree follow from the code, every command parses, every flag exists."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import typing
from pathlib import Path

import pytest
import tyro

from pages import commands, inline_commands, inline_flags
from tenfold.cli import VERBS
from tenfold.commands import BENCHES, Bench, bench_options
from tenfold.errors import CheckpointError, UsageError
from tenfold.evaluation import TASKS
from tenfold.flags import flags_of, parse
from tenfold.registry import recipes
from tenfold.systems import SYSTEMS
from tenfold.training import train

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES.remove(ROOT / "docs/LOG.md")  # history keeps the commands of its day
SWITCHES = (tyro.conf.FlagCreatePairsOff,)

# Flags that pages name and that belong to other programs.
OTHER_PROGRAMS = {
    "durations",  # pytest
    "nproc-per-node",  # torchrun
}


def check_command(words: list[str], folder: Path) -> None:
    """Parses a command as the command line does and runs nothing. Raises UsageError for a name or flag that does not exist
    and for a value that is not allowed. `folder` looks like a run, so that training stops before it starts."""
    verb = " ".join(words[:2]) if " ".join(words[:2]) in VERBS else words[0]
    rest = words[len(verb.split()) :]
    function = VERBS.load(verb)
    if "--help" in rest:
        rest.remove("--help")
        if verb not in ("train", "eval"):
            return
    if verb == "train":
        check_training(rest, folder)
    elif verb == "eval" and rest:
        kind = typing.get_type_hints(TASKS.load(rest[0]))["options"]
        if "--report" in rest[:-1]:  # the flag of all tasks, with its folder; `eval` adds it to each
            at = rest.index("--report")
            del rest[at : at + 2]
        parse(kind, rest[1:], f"tenfold eval {rest[0]}", config=SWITCHES)
    elif "options" in typing.get_type_hints(function):
        options = parse(typing.get_type_hints(function)["options"], rest, f"tenfold {verb}", config=SWITCHES)
        if isinstance(options, Bench) and options.name != "all":
            BENCHES.entry(options.name)
            bench_options(options.name, options)


def check_training(rest: list[str], folder: Path) -> None:
    """The recipe with its flags, up to the refusal of a run folder that is in use; or that of one that does not exist."""
    if not rest:
        return
    if {"--resume", "--replay"} & set(rest):
        with pytest.raises(CheckpointError, match="no run folder"):
            train(rest)
        return
    try:
        train([*rest, "--out", str(folder)])
    except UsageError as error:
        if "holds a run already" not in str(error):
            raise


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps({}))
    return tmp_path / "run"


def all_flags() -> set[str]:
    """Every flag of every verb, evaluation and recipe."""
    kinds = [typing.get_type_hints(VERBS.load(verb.name)).get("options") for verb in VERBS]
    kinds += [typing.get_type_hints(TASKS.load(task.name))["options"] for task in TASKS]
    flags = {"out", "resume", "replay", "report", "help", "version"}
    for kind in filter(None, kinds):
        flags |= set(flags_of(kind))
    for recipe in recipes:
        build = recipes.load(recipe.name)
        flags |= set(flags_of(type(build()))) | set(inspect.signature(build).parameters)
    return flags


def test_table_and_tree_are_those_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("tree", ROOT / "docs/tree.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / "README.md").read_text()
    assert module.render(text) == text, "run: python docs/tree.py"
    assert "TABLE" not in text


def problem_of(words: list[str], folder: Path, complete: bool) -> str:
    """What is wrong with a command, "" for nothing. One that need not be `complete` may lack what it needs, as in prose."""
    try:
        check_command(list(words), folder)
    except UsageError as error:
        if complete or not re.search(" lacks | without a value: ", str(error)):
            return f"tenfold {' '.join(words)}: {error}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_parses(page: Path, folder: Path) -> None:
    problems = [problem_of(words, folder, complete=True) for words in commands(page.read_text())]
    problems += [problem_of(words, folder, complete=False) for words in inline_commands(page.read_text())]
    wrong = [problem for problem in problems if problem]
    assert not wrong, "\n".join([page.name, *wrong])


def test_every_flag_that_a_page_names_exists() -> None:
    known = all_flags() | OTHER_PROGRAMS
    named = {(page.name, flag) for page in PAGES for flag in inline_flags(page.read_text())}
    unknown = {(page, flag) for page, flag in named if flag not in known and flag.replace("_", "-") not in known}
    assert not unknown
    assert len(named) > 20


def test_the_commands_of_the_ten_systems_parse(folder: Path) -> None:
    shown = [command.split()[1:] for system in SYSTEMS for command in system.commands]
    assert not "".join(problem_of(words, folder, complete=False) for words in shown)


@pytest.mark.parametrize(
    "wrong",
    [
        "train dinov3-mini --trainer.stepz 3",
        "train dinov3-minii",
        "train dinov3-mini --trainer.steps many",
        "vision embed WEIGHTS photos/ --limt 3",
        "vision embedd WEIGHTS",
        "eval knn WEIGHTS --train a --vall b",
        "bench vits",
        "bench vit --peers hf",
        "serve language --port eighty",
    ],
)
def test_a_wrong_command_in_a_page_is_noticed(wrong: str, folder: Path) -> None:
    [words] = commands(f"```\ntenfold {wrong}      # what it does\n```\n")
    assert words == wrong.split()
    with pytest.raises(UsageError):
        check_command(words, folder)


def test_the_pages_show_commands() -> None:
    assert sum(len(commands(page.read_text())) for page in PAGES) >= 60

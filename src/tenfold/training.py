"""`tenfold train RECIPE`: a recipe's configuration becomes flags, its task goes to the trainer, the run to a folder.

    tenfold train                                          lists the recipes
    tenfold train dinov3-mini --out runs/a --optim.lr 1e-3
    tenfold train --resume runs/a                          continues with the run's own configuration
    tenfold train --replay runs/a/nonfinite-step-812       runs a step again that was not finite, and says what was
    torchrun --nproc-per-node 2 -m tenfold train dinov3-mini --out runs/a

A recipe's flags are the fields of its configuration; `tenfold train RECIPE --help` lists them.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tenfold import __version__
from tenfold.errors import CheckpointError, MissingExtra, UsageError, unknown_name
from tenfold.registry import recipes

if TYPE_CHECKING:
    from tenfold.engine.recipe import Recipe


def train(args: list[str]) -> int:
    """The verb. Its flags depend on the recipe, so it parses its own words."""
    if not args or args[0] in ("-h", "--help"):
        print(_listing())
        return 0
    from tenfold.flags import parse

    if args[0].startswith("-"):
        given = {word.partition("=")[0] for word in args}
        if "--replay" in given:
            return _replay(parse(_Replay, args, prog="tenfold train").replay)
        if "--resume" not in given:
            raise UsageError(f"{args[0]} comes before the recipe. Type: tenfold train RECIPE {args[0]} ...")
        folder = parse(_Resume, args, prog="tenfold train").resume
        name, recipe = reopen(folder)
        out, resume = folder, True
    else:
        name, resume = recipes.current(args[0]), False
        default, rest = _of_kinds(*_sized(name, args[1:]))
        recipe, out = _parse_recipe(name, default, rest)
    metrics = run_recipe(name, recipe, out, resume=resume)
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps({"run": str(out), **metrics}, indent=2))
    return 0


@dataclasses.dataclass(frozen=True)
class _Resume:
    """Continues with a run from its newest complete checkpoint, with the configuration in its folder."""

    resume: Path  # the run folder


@dataclasses.dataclass(frozen=True)
class _Replay:
    """Runs the step again at which a run met NaN or Inf, from its capture, and names the losses and gradients."""

    replay: Path  # the run's nonfinite-step-N folder


def _replay(folder: Path) -> int:
    from tenfold.engine.guard import replay

    _, recipe = reopen(folder.absolute().parent)
    print(json.dumps(replay(folder, recipe.make_task()), indent=2))
    return 0


def _sized(name: str, args: list[str]) -> tuple[Recipe, list[str]]:
    """The recipe, built with `--size` where it has that dial (everything else follows from it), and the other words."""
    build = recipes.load(name)
    dial = inspect.signature(build, eval_str=True).parameters.get("size")
    for i, word in enumerate(args):
        flag, equals, value = word.partition("=")
        if flag != "--size":
            continue
        if dial is None:
            raise UsageError(f"{name} has one size. Its own fields are under --model: tenfold train {name} --help")
        value = value if equals else (args[i + 1] if i + 1 < len(args) else "")
        sizes = typing.get_args(dial.annotation)
        if value not in sizes:
            raise unknown_name(f"size of {name}", value, sizes)
        return build(size=value), args[:i] + args[i + (1 if equals else 2) :]
    return build(), args


def _of_kinds(recipe: Recipe, args: list[str]) -> tuple[Recipe, list[str]]:
    """The recipe with another kind of a part that has several (`--model.kind convnext`), in its default size; and the other
    words. The flags of the part are those of its kind."""
    from tenfold.config import kinds_of

    for name, find in kinds_of(recipe).items():
        for i, word in enumerate(args):
            flag, equals, value = word.partition("=")
            if flag == f"--{name}.kind":
                value = value if equals else (args[i + 1] if i + 1 < len(args) else "")
                return (
                    dataclasses.replace(recipe, **{name: find(value)()}),
                    args[:i] + args[i + (1 if equals else 2) :],
                )
    return recipe, args


def _parse_recipe(name: str, default: Recipe, args: list[str]) -> tuple[Recipe, Path]:
    """The recipe with the flags applied, and the run folder: the recipe's own fields are the flags, and `--out` one more."""
    from tenfold.config import from_dict, to_dict
    from tenfold.flags import parse

    if {"-h", "--help"} & set(args):
        _explain(name, default)
    kind, prog = type(default), f"tenfold train {name}"
    values = {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}
    nested = _exact_types(default)
    with_out = dataclasses.make_dataclass("Train", [*nested, ("out", Path | None, None)], bases=(kind,), frozen=True)
    options: Any = parse(with_out, args, prog, default=with_out(**values))
    chosen = to_dict(options)
    del chosen["out"]
    return from_dict(kind, chosen), options.out or Path("runs") / name  # from_dict refuses what no field has checked


def _exact_types(default: Recipe) -> list[tuple[str, type, Any]]:
    """The fields whose flags are those of their value's class: they are annotated with the base of several."""
    from tenfold.config import kinds_of

    several = kinds_of(default)
    fields = [field for field in dataclasses.fields(default) if field.name in several]
    values = {field.name: getattr(default, field.name) for field in fields}
    return [
        (f.name, type(values[f.name]), dataclasses.field(default=values[f.name], metadata=dict(f.metadata)))
        for f in fields
    ]


def _explain(name: str, default: Recipe) -> None:
    """Prints every flag with its meaning and leaves. tyro finds a field's comment only in a class that stands in a file,
    so the recipe is a part of the made one here instead of its base."""
    import tyro

    kind = dataclasses.make_dataclass(
        "Train",
        [
            ("recipe", Annotated[type(default), tyro.conf.arg(name="")]),
            ("out", Annotated[Path | None, tyro.conf.arg(help=f"run folder; None is runs/{name}")], None),
        ],
        frozen=True,
        namespace={"__doc__": type(default).__doc__},
    )
    tyro.cli(kind, default=kind(default), args=["--help"], prog=f"tenfold train {name}")


def _listing() -> str:
    width = max(len(entry.name) for entry in recipes) + 2
    lines = [f"  {entry.name:<{width}}{entry.summary}" for entry in recipes]
    return "\n".join(
        [
            "tenfold train RECIPE [--field value ...]     (tenfold train RECIPE --help lists the fields; some take --size)",
            "tenfold train --resume RUN                   continues with a stopped run",
            "tenfold train --replay RUN/nonfinite-step-N  runs a step again that was not finite",
            *lines,
        ]
    )


def run_recipe(name: str, recipe: Recipe, out: Path, resume: bool = False) -> dict[str, Any]:
    """Trains and returns the final metrics. The folder holds config.json, checkpoints, metrics.jsonl, the final weights
    and a report."""
    from tenfold.engine.trainer import Trainer

    if not resume and (out / "config.json").exists():
        raise UsageError(
            f"{out} holds a run already. Continue it: tenfold train --resume {out}; or choose another --out."
        )
    trainer = Trainer(recipe.make_task(), recipe, out, name=name, resume=resume)
    return trainer.fit()


def reopen(folder: Path) -> tuple[str, Recipe]:
    """The recipe's name and resolved configuration of a run folder."""
    from tenfold.config import from_dict

    path = folder / "config.json"
    try:
        saved = json.loads(path.read_text())
        name, values = saved["recipe"], saved["config"]
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a run folder: it has no config.json.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from None
    except (KeyError, TypeError):
        raise CheckpointError(f"{path} is not a run's configuration: it needs `recipe` and `config`.") from None
    try:
        return name, from_dict(type(recipes.load(str(name))()), values)
    except MissingExtra:
        raise
    except UsageError as error:
        writer = saved.get("version", "another version")
        raise CheckpointError(
            f"{path} does not fit this tenfold ({__version__}); it was written by {writer}. {error} "
            f"Use the version that wrote it, or start a new run."
        ) from None

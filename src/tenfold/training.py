"""`tenfold train RECIPE`: a recipe's configuration becomes flags, its task goes to the trainer, the run to a folder.

tenfold train                                          lists the recipes
tenfold train dinov3-mini --out runs/a --optim.lr 1e-3
tenfold train --resume runs/a                          goes on with the run's own configuration
torchrun --nproc-per-node 2 -m tenfold train dinov3-mini --out runs/a
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tenfold.errors import CheckpointError, UsageError
from tenfold.registry import recipes

if TYPE_CHECKING:
    from tenfold.engine.config import Recipe


def train(args: list[str]) -> int:
    """The verb. Its flags depend on the recipe, so it parses its own words."""
    if not args or args[0] in ("-h", "--help"):
        print(_listing())
        return 0
    import tyro

    if args[0].startswith("-"):
        if "--resume" not in args:
            raise UsageError(f"{args[0]} comes before the recipe. Type: tenfold train RECIPE {args[0]} ...")
        folder = tyro.cli(_Resume, args=args, prog="tenfold train").resume
        name, recipe = reopen(folder)
        out, resume = folder, True
    else:
        name = args[0]
        default: Recipe = recipes.load(name)()
        options = _flags(name, default, args[1:])
        recipe, resume = options.recipe, False
        out = options.out or Path("runs") / name
    metrics = run_recipe(name, recipe, out, resume=resume)
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps({"run": str(out), **metrics}, indent=2))
    return 0


@dataclasses.dataclass(frozen=True)
class _Resume:
    """Goes on with a run from its newest complete checkpoint, with the configuration in its folder."""

    resume: Path  # the run folder


def _flags(name: str, default: Recipe, args: list[str]) -> Any:
    import tyro

    kind = dataclasses.make_dataclass(
        "Train",
        [
            ("recipe", Annotated[type(default), tyro.conf.arg(name="")]),
            ("out", Annotated[Path | None, tyro.conf.arg(help=f"run folder (default: runs/{name})")], None),
        ],
        frozen=True,
        namespace={"__doc__": type(default).__doc__},
    )
    return tyro.cli(kind, default=kind(default), args=args, prog=f"tenfold train {name}")


def _listing() -> str:
    width = max(len(entry.name) for entry in recipes) + 2
    lines = [f"  {entry.name:<{width}}{entry.summary}" for entry in recipes]
    return "\n".join(
        [
            "tenfold train RECIPE [--field value ...]     (tenfold train RECIPE --help lists the fields)",
            "tenfold train --resume RUN                   goes on with a stopped run",
            *lines,
        ]
    )


def run_recipe(name: str, recipe: Recipe, out: Path, resume: bool = False) -> dict[str, Any]:
    """Trains and returns the final metrics. The folder holds config.json, checkpoints, metrics.jsonl, the final weights
    and a report."""
    from tenfold.engine.trainer import Trainer

    if not resume and (out / "config.json").exists():
        raise UsageError(
            f"{out} holds a run already. Go on with it: tenfold train --resume {out}; or choose another --out."
        )
    trainer = Trainer(recipe.make_task(), recipe, out, name=name, resume=resume)
    return trainer.fit()


def reopen(folder: Path) -> tuple[str, Recipe]:
    """The recipe's name and resolved configuration of a run folder."""
    from tenfold.engine.config import from_dict

    path = folder / "config.json"
    try:
        saved = json.loads(path.read_text())
        name, values = saved["recipe"], saved["config"]
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no run folder: it has no config.json.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from None
    return name, from_dict(type(recipes.load(name)()), values)

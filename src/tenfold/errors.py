"""Exceptions with exit codes: every mistake a user can make is one of this family.

A message says what was given, what is allowed, the nearest match and what to do next, so it never needs a traceback.
The command line prints `str(error)` and leaves with `error.exit_code`; a library user catches the class.

    0 done | 2 usage or configuration | 3 data | 4 checkpoint, weights or storage | 5 non-finite numbers | 75 preempted
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class TenfoldError(Exception):
    """Base of the family. `exit_code` is what the command line leaves with."""

    exit_code = 1


class UsageError(TenfoldError, ValueError):
    """A wrong flag, name, value or configuration."""

    exit_code = 2


class FieldError(UsageError):
    """A field of a configuration holds what it may not. `name` is dotted, as on the command line (`optim.lr`)."""

    def __init__(self, name: str, value: object, allowed: str) -> None:
        self.name, self.value, self.allowed = name, value, allowed
        super().__init__(f"{name} = {value!r}: allowed {allowed}.")

    def __reduce__(self) -> tuple[object, ...]:  # an exception with arguments of its own does not pickle by itself
        return type(self), (self.name, self.value, self.allowed)

    def under(self, where: str) -> FieldError:
        """The same, for a field of the configuration that stands at `where` (a head is `dino` or `ibot`, not `head`)."""
        return FieldError(f"{where}.{self.name.rpartition('.')[2]}", self.value, self.allowed)


class MissingExtra(UsageError):
    """A package outside the base install is absent.

    Raised by the one file that owns the package; the message is the exact line to type.
    """

    def __init__(self, package: str, extra: str, why: str = "") -> None:
        self.package, self.extra, self.why = package, extra, why
        needed = f" ({why})" if why else ""
        super().__init__(f'{package} is not installed{needed}. Type: pip install "tenfold[{extra}]"')

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.package, self.extra, self.why)


class DataError(TenfoldError):
    """An input that cannot be read or breaks a limit. The message names the file and the field or offset."""

    exit_code = 3


class WeightsError(TenfoldError):
    """Weights that do not fit the model: the message lists every missing, unexpected or misshaped key."""

    exit_code = 4


class CheckpointError(TenfoldError):
    """A checkpoint or run folder that cannot be used."""

    exit_code = 4


class StorageError(TenfoldError):
    """Writing failed (disk full, no permission). What was there before is intact."""

    exit_code = 4


class LockHeld(UsageError):
    """Another process works on the same run folder or cache; the message says who."""


class NonFiniteError(TenfoldError):
    """NaN or Inf in a loss or gradient: training stopped before the optimizer step."""

    exit_code = 5


class LostRank(TenfoldError):
    """Another rank died; the message says which."""


class Preempted(TenfoldError):
    """A signal asked to stop; the state is saved and `--resume` continues from it."""

    exit_code = 75


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name most like `name`, or None when nothing is close."""
    matches = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_name(what: str, name: str, allowed: Iterable[str], todo: str = "") -> UsageError:
    """A UsageError for a name that is not in `allowed`, naming the nearest one."""
    names = sorted(allowed)
    close = nearest(name, names)
    parts = [f"unknown {what} {name!r}."]
    if close:
        parts.append(f"Did you mean {close!r}?")
    parts.append(f"Allowed: {', '.join(names) if names else '(none)'}.")
    if todo:
        parts.append(todo)
    return UsageError(" ".join(parts))


def storage_error(path: object, error: OSError) -> StorageError:
    """Turns an OSError of a write into a StorageError that says what to do."""
    if error.errno == errno.ENOSPC:
        return StorageError(f"no space left while writing {path}. Nothing was replaced; free some space and run again.")
    return StorageError(f"could not write {path}: {error.strerror or error}. Nothing was replaced.")

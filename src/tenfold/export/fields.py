"""Metadata fields of weights files (config.json, GGUF): each is used, ignored for a stated reason, or refused.

    FIELDS = Fields(used=("hidden_size",), ignored={"use_cache": "how transformers generates"}, only={"pretraining_tp": (1,)})
    FIELDS.check(config, path)            raises WeightsError for a field that would change what the model computes
    FIELDS.fate("use_cache")              "ignored: how transformers generates"

A field that nobody has thought of may be what makes the model another one, so an unknown field is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from tenfold.errors import WeightsError, nearest


@dataclass(frozen=True)
class Fields:
    """used: names that the reader looks at. ignored: names, or patterns with `*`, and why they change nothing. only: the
    values of a field that leave the model as it is here. Fields that are null say nothing and are taken."""

    used: Collection[str] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def fate(self, name: str) -> str:
        """What becomes of a field of this name."""
        if name in self.used:
            return "used"
        if name in self.only:
            return f"refused unless {' or '.join(map(repr, self.only[name]))}"
        reason = next((why for pattern, why in self.ignored.items() if fnmatchcase(name, pattern)), None)
        return "refused" if reason is None else f"ignored: {reason}"

    def check(self, values: Mapping[str, Any], where: object) -> None:
        """Raises WeightsError that names every field which cannot be honoured."""
        wrong = []
        for name, value in values.items():
            fate = self.fate(name)
            if not fate.startswith("refused") or value is None:
                continue
            if name in self.only and any(value == one for one in self.only[name]):
                continue
            allowed = f"; allowed is {' or '.join(map(repr, self.only[name]))}" if name in self.only else ""
            close = "" if name in self.only else nearest(name, [*self.used, *self.only])
            shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:80] + " ..."
            wrong.append(f"  {name} = {shown}{allowed}" + (f" (is it {close}?)" if close else ""))
        if wrong:
            raise WeightsError(
                f"{where}: fields of it would change what the model computes, or are not known; nothing was loaded.\n"
                + "\n".join(wrong)
                + "\nA model that needs them cannot be read. Remove a field only where it changes nothing."
            )

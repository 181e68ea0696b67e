"""Deprecated import paths: modules that moved keep working for one version, with a DeprecationWarning.

    from tenfold.language.engine import LLM         warns, and gives what `from tenfold.language import LLM` gives

`install` puts a finder behind Python's own, so that it is asked only for names that do not exist any more.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Iterable
from types import ModuleType

MOVED = {
    "tenfold.language.engine": ("tenfold.language.decoding.engine", "tenfold.language"),
    "tenfold.language.language_model": ("tenfold.language.models.language_model", "tenfold.language"),
    "tenfold.vision.images": ("tenfold.vision.backbones.images", "tenfold.vision"),
}
"""Old module -> (where it is now, whose public names hold what pages show)."""


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        now, public = MOVED[spec.name]
        warnings.warn(
            f"{spec.name} has moved; this path goes with the next version. Import from {public} instead.",
            DeprecationWarning,
            stacklevel=2,
        )
        return _Alias(spec.name, now)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: the alias looks everything up in the module that moved."""


class _Alias(ModuleType):
    def __init__(self, name: str, now: str) -> None:
        super().__init__(name)
        self.__dict__["_now"] = now

    def __getattr__(self, name: str) -> object:
        return getattr(importlib.import_module(self.__dict__["_now"]), name)


def install() -> None:
    """Adds the finder, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())

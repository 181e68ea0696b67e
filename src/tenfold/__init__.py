"""tenfold: from raw data to a small, fast, served model.

Nothing heavy is imported here: `tenfold.load` and the lists below import what they need when they are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["load", "recipes", "systems"]

if TYPE_CHECKING:
    from tenfold.export.weights import load
    from tenfold.systems import systems


def recipes() -> list[str]:
    """The names that `tenfold train` takes."""
    from tenfold.registry import recipes as registry

    return [entry.name for entry in registry]


def __getattr__(name: str) -> Any:
    if name == "load":
        from tenfold.export.weights import load

        return load
    if name == "systems":
        from tenfold.systems import systems

        return systems
    raise AttributeError(f"module 'tenfold' has no attribute {name!r}")

"""tenfold: from raw data to a small, fast, served model.

Nothing heavy is imported here: `tenfold.load` and the lists below import what they need when they are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenfold import moved
from tenfold.registry import public_names

if TYPE_CHECKING:
    from tenfold.export.weights import convert as convert
    from tenfold.export.weights import load as load
    from tenfold.systems import systems as systems

__version__ = "0.1.0"
__all__ = ["convert", "load", "recipes", "systems"]

moved.install()


def recipes() -> list[str]:
    """The names that `tenfold train` takes."""
    from tenfold.registry import recipes as registry

    return [entry.name for entry in registry]


__getattr__, __dir__ = public_names(__name__, {"tenfold.export.weights": "convert load", "tenfold.systems": "systems"})

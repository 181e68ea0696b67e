"""Import paths of the last version give the very objects of today with a warning, and no other name is made up."""

from __future__ import annotations

import importlib
import sys

import pytest

import tenfold
from tenfold.moved import MOVED, install


@pytest.mark.parametrize("old", MOVED)
def test_a_moved_module_warns_and_gives_the_objects_of_today(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now, public = MOVED[old]
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=rf"{old} has moved.*Import from {public} instead"):
        moved = importlib.import_module(old)
    monkeypatch.delitem(sys.modules, old)
    today = importlib.import_module(now)
    names = [name for name, value in vars(today).items() if getattr(value, "__module__", None) == now]
    assert names
    assert all(getattr(moved, name) is getattr(today, name) for name in names)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = moved.no_such_name


def test_a_name_that_never_existed_is_still_an_import_error() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"tenfold\.no_such_module"):
        importlib.import_module("tenfold.no_such_module")


def test_the_finder_is_asked_last_and_stands_once() -> None:
    assert tenfold.__version__
    before = list(sys.meta_path)
    install()
    assert sys.meta_path == before
    kinds = [type(finder).__module__ for finder in sys.meta_path]
    assert kinds.count("tenfold.moved") == 1

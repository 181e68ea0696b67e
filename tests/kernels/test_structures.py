"""C structures are filled by field name, and a layout that differs from the compiled one is noticed at load."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tenfold.errors import UsageError
from tenfold.kernels import decode, native
from tenfold.kernels.bag_calls import STRUCTURES, BagCall
from tenfold.kernels.structures import CStructure, check_sizes

ALL = [(native.SOURCE, STRUCTURES), (decode.SOURCE, decode.STRUCTURES)]


def compiled(source: Path, structures: tuple[type[ctypes.Structure], ...]) -> ctypes.CDLL:
    """Tests of compiled code are skipped where it is refused; a source that no longer compiles must not look like that."""
    library, reason = native.build(source, structures)
    if library is None:
        assert reason.startswith(("no C++ compiler", "TENFOLD_NATIVE=0")), reason
        pytest.skip(f"this machine: {reason}")
    return library


def shortened(structure: type[ctypes.Structure]) -> type[CStructure]:
    """The same structure without its last field, as it would be when only one of the two declarations was changed."""
    return type(structure.__name__, (CStructure,), {"_fields_": list(structure._fields_)[:-1]})


@pytest.mark.parametrize(("source", "structures"), ALL, ids=[source.name for source, _ in ALL])
def test_every_source_compiles_and_gives_every_structure_the_size_that_python_fills(
    source: Path, structures: tuple[type[ctypes.Structure], ...]
) -> None:
    compiled(source, structures)
    declared = [
        line.split()[1] for line in source.read_text().splitlines() if line.startswith("struct ") and "{" in line
    ]
    known = [name for name in declared if f'"{name}"' in source.read_text()]
    assert {structure.__name__ for structure in structures} == set(known)


@pytest.mark.parametrize(("source", "structures"), ALL, ids=[source.name for source, _ in ALL])
def test_a_layout_that_differs_refuses_the_library_and_says_both_sizes(
    source: Path, structures: tuple[type[ctypes.Structure], ...]
) -> None:
    compiled(source, structures)
    for structure in structures:
        wrong = shortened(structure)
        library, reason = native.build(source, (wrong,))
        assert library is None
        sizes = ctypes.sizeof(structure), ctypes.sizeof(wrong)
        assert f"{source.name} takes {sizes[0]} bytes for {structure.__name__}, and Python fills {sizes[1]}" in reason


def test_a_structure_that_the_library_does_not_know_is_refused() -> None:
    library = compiled(native.SOURCE, STRUCTURES)
    stranger = type("Stranger", (CStructure,), {"_fields_": [("x", ctypes.c_int64)]})
    with pytest.raises(UsageError, match=r"bag.cpp knows no Stranger"):
        check_sizes(library, "bag.cpp", [stranger])


def test_a_bag_with_a_wrong_layout_is_computed_by_torch_and_the_backend_says_why() -> None:
    compiled(native.SOURCE, STRUCTURES)
    code = """
import ctypes, torch
from tenfold.kernels import bag_calls
fields = bag_calls.BagCall._fields_
from tenfold.kernels.structures import CStructure
wrong = type("BagCall", (CStructure,), {"_fields_": [*fields, ("more", ctypes.c_int64)]})
bag_calls.STRUCTURES = (wrong, *bag_calls.STRUCTURES[1:])
from tenfold.kernels.bag import bag
from tenfold.kernels.native import backends
table = torch.arange(8.0).view(4, 2)
assert bag(table, torch.tensor([[1, 3]]), torch.ones(1, 2)).tolist() == [[8.0, 10.0]]
print(next(b for b in backends() if b.name == "cpp").refused_because)
"""
    result = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
    size = ctypes.sizeof(BagCall)
    assert f"takes {size} bytes for BagCall, and Python fills {size + 8}" in result.stdout


def test_fields_are_named_all_of_them() -> None:
    pair = type("Pair", (CStructure,), {"_fields_": [("first", ctypes.c_int64), ("second", ctypes.c_int64)]})
    made = pair(first=1, second=2)
    assert (made.first, made.second) == (1, 2)
    with pytest.raises(TypeError):
        pair(1, 2)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="Pair lacks its fields second"):
        pair(first=1)
    with pytest.raises(TypeError):
        pair(first=1, secnd=2)

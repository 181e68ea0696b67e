"""Backends of the bag: each is listed with its reason, and every result is the same without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tenfold.engine.row_adamw import RowAdamW
from tenfold.kernels import native
from tenfold.kernels.bag import bag, bag_backward, row_dots
from tenfold.kernels.native import backends

WITHOUT = """
import torch
from tenfold.kernels.native import backends
from tenfold.nn.memory import MemoryLayer, MemoryTable
table = MemoryTable(8, 12)
MemoryLayer(12, table, heads=2, top_k=4, key_dim=6)(torch.randn(5, 12)).sum().backward()
assert table.values.grad is not None
for backend in backends():
    print(backend.name, backend.available, backend.refused_because)
"""


def without(tmp_path: Path, **environment: str) -> str:
    clean = {**os.environ, "TENFOLD_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", **environment}
    result = subprocess.run([sys.executable, "-c", WITHOUT], env=clean, capture_output=True, text=True, check=True)
    return result.stdout


def test_without_a_compiler_a_layer_still_trains_and_the_reason_is_given(tmp_path: Path) -> None:
    out = without(tmp_path, CXX="no-such-compiler")
    assert "torch True" in out
    assert "cpp False no C++ compiler (no-such-compiler not found)" in out
    assert not (tmp_path / "cache").exists()


def test_every_backend_is_listed_with_its_state() -> None:
    listed = {backend.name: backend for backend in backends()}
    assert list(listed) == ["torch", "cpp", "triton"]
    assert listed["torch"].available
    for backend in listed.values():
        assert backend.available == (not backend.refused_because)
    if not torch.cuda.is_available():
        assert listed["triton"].refused_because == "no CUDA device"


@pytest.fixture
def pure(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Turns the compiled kernels off when `setattr` is called on it."""
    if native.library() is None:
        pytest.skip("this machine has no C++ compiler: there is only one backend")
    return monkeypatch


@pytest.mark.parametrize(("k", "d", "t", "b"), [(1, 1, 1, 1), (50, 33, 20, 7), (5000, 64, 40, 128), (3, 300, 9, 2)])
def test_compiled_and_pure_torch_agree(pure: pytest.MonkeyPatch, k: int, d: int, t: int, b: int) -> None:
    torch.manual_seed(0)
    table, index, weight, grad = torch.randn(k, d), torch.randint(k, (t, b)), torch.randn(t, b), torch.randn(t, d)

    def everything() -> list[torch.Tensor]:
        rows, dots = bag_backward(table, index, weight, grad)
        return [bag(table, index, weight), row_dots(table, index, grad), rows.ids, rows.rows, dots]

    compiled = everything()
    pure.setattr("tenfold.kernels.bag.library", lambda: None)
    for ours, theirs in zip(compiled, everything()):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4 * b**0.5)


def test_compiled_and_pure_row_steps_agree(pure: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    start = torch.randn(20, 9)
    results = []
    for compiled in (True, False):
        if not compiled:
            pure.setattr("tenfold.engine.row_adamw.library", lambda: None)
        table = torch.nn.Parameter(start.clone())
        optimizer = RowAdamW([table], lr=0.05, weight_decay=0.1)
        generator = torch.Generator().manual_seed(1)
        for _ in range(10):
            ids = torch.randperm(20, generator=generator)[:7].sort().values
            rows = torch.randn(7, 9, generator=generator)
            table.grad = torch.sparse_coo_tensor(ids[None], rows, (20, 9), is_coalesced=True, check_invariants=True)
            optimizer.step()
        results.append([table.detach(), *optimizer.state[table].values()])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [-1, 20])
def test_an_index_outside_the_table_is_an_error_not_a_crash(pure: pytest.MonkeyPatch, bad: int) -> None:
    index = torch.tensor([[3, bad]])
    with pytest.raises(IndexError, match=f"index {bad} is outside a table of 20 rows"):
        bag(torch.randn(20, 4), index, torch.ones(1, 2))
    with pytest.raises(IndexError):
        row_dots(torch.randn(20, 4), index, torch.ones(1, 4))


def test_two_threads_give_the_bits_of_one(pure: pytest.MonkeyPatch) -> None:
    table, index, weight, grad = (
        torch.randn(100, 40),
        torch.randint(100, (33, 16)),
        torch.randn(33, 16),
        torch.randn(33, 40),
    )
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            rows, dots = bag_backward(table, index, weight, grad)
            found.append([bag(table, index, weight), rows.rows, dots])
    finally:
        torch.set_num_threads(threads)
    assert all(one.equal(two) for one, two in zip(*found))

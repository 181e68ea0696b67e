"""One attempt at a shard: its output appears whole or not at all, and every way to fail comes back in words."""

from __future__ import annotations

import errno
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tenfold.errors import DataError, StorageError, UsageError
from tenfold.shards.attempt import Job, Outcome, attempt, item_seed, seed_generators, thread_environment
from tenfold.shards.journal import digest, size


def tried(function: Callable[[Any, Path], object], final: Path, item: Any = "item", seed: int = 0) -> Outcome:
    return attempt(function, Job("a", pickle.dumps(item), final, seed), torch.get_num_threads())


def test_a_finished_shard_has_its_name_its_size_and_its_digest(tmp_path: Path) -> None:
    final = tmp_path / "deep/a"
    outcome = tried(lambda item, target: target.write_text(item * 3), final)
    assert final.read_text() == "itemitemitem"
    assert outcome == Outcome("a", "done", "", size(final), digest(final))
    assert list(final.parent.iterdir()) == [final]


@pytest.mark.parametrize("before", ["file", "folder"])
@pytest.mark.parametrize("after", ["file", "folder"])
def test_whatever_stood_at_the_final_name_is_replaced(tmp_path: Path, before: str, after: str) -> None:
    def write(item: str, target: Path) -> None:
        if item == "folder":
            target.mkdir()
            target = target / "inner"
        target.write_text(item)

    final = tmp_path / "a"
    write(before, final)
    assert tried(write, final, after).kind == "done"
    assert (final / "inner" if after == "folder" else final).read_text() == after
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ValueError("broken"), "failed", "ValueError: broken"),
        (DataError("a.jpg is torn"), "failed", "DataError: a.jpg is torn"),
        (SystemExit(3), "failed", "SystemExit: 3"),
        (PermissionError(errno.EACCES, "denied", "input"), "failed", "PermissionError"),
        (UsageError("side = 7"), "usage", "side = 7"),
        (StorageError("no space"), "storage", "no space"),
        (OSError(errno.ENOSPC, "full"), "storage", "no space left while writing"),
        (RuntimeError(f"wrapped: {os.strerror(errno.ENOSPC)}"), "storage", "no space left while writing"),
    ],
)
def test_an_error_comes_back_in_words_and_leaves_what_was_there(
    tmp_path: Path, error: BaseException, kind: str, said: str
) -> None:
    def fail(item: str, target: Path) -> None:
        target.write_text("half")
        raise error

    (tmp_path / "a").write_text("before")
    outcome = tried(fail, tmp_path / "a")
    assert outcome.kind == kind
    assert said in outcome.reason
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "before")]


def test_a_full_disk_is_seen_through_the_errors_that_wrap_it(tmp_path: Path) -> None:
    def fail(item: str, target: Path) -> None:
        try:
            raise OSError(errno.EDQUOT, "quota")
        except OSError as error:
            raise ValueError("the encoder failed") from error

    assert tried(fail, tmp_path / "a").kind == "storage"


def test_a_function_that_writes_nothing_has_failed(tmp_path: Path) -> None:
    outcome = tried(lambda item, target: None, tmp_path / "a")
    assert outcome.kind == "failed"
    assert "wrote nothing" in outcome.reason


def test_draws_of_every_global_generator_depend_on_the_seed_only(tmp_path: Path) -> None:
    def draws(seed: int) -> tuple[float, float, float]:
        seed_generators(seed)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    first = draws(2**62 + 5)
    assert draws(7) != first
    assert draws(2**62 + 5) == first


@given(st.text(max_size=8), st.text(max_size=8))
def test_seeds_of_items_differ_by_name_and_by_settings_and_fit_63_bits(name: str, other: str) -> None:
    assert 0 <= item_seed("settings", name) < 2**63
    assert (item_seed("settings", name) == item_seed("settings", other)) == (name == other)
    assert item_seed("settings", name) != item_seed("other settings", name)


def test_the_environment_of_a_worker_limits_every_library_and_fixes_the_order_of_sets() -> None:
    environment = thread_environment(3)
    assert environment.pop("PYTHONHASHSEED") == "0"
    assert set(environment.values()) == {"3"}
    assert {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"} <= environment.keys()

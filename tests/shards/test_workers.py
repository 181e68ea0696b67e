"""Local worker processes: a death is one item's failed attempt, and leaving the pool ends every process."""

from __future__ import annotations

import os
import pickle
import sys
import time
import types
from collections import deque
from pathlib import Path

import pytest

import shard_functions as work
from tenfold.shards.attempt import Job, Outcome
from tenfold.shards.workers import LocalWorkers


def job(folder: Path, name: str, item: object) -> Job:
    return Job(name, pickle.dumps(item), folder / name, seed=1)


def outcomes(pool: LocalWorkers, jobs: list[Job]) -> dict[str, Outcome]:
    waiting, found = deque(jobs), {}
    while waiting or pool.busy:
        while waiting and pool.free:
            pool.submit(waiting.popleft())
        found |= {outcome.name: outcome for outcome in pool.wait(1.0)}
    return found


def test_every_job_is_answered_by_its_name_within_the_limit_of_processes(tmp_path: Path) -> None:
    environment = dict(os.environ)
    with LocalWorkers(work.count_words, workers=2, threads=3) as pool:
        jobs = [job(tmp_path, name, f"to {name} or not") for name in "abcde"]
        pool.submit(jobs[0])
        pool.submit(jobs[1])
        assert (pool.busy, pool.free) == (2, 0)
        with pytest.raises(AssertionError, match="no worker is free"):
            pool.submit(jobs[2])
        found = outcomes(pool, jobs[2:])
    assert found.keys() <= set("abcde")
    assert {outcome.kind for outcome in found.values()} == {"done"}
    assert all(" 3\n" in (tmp_path / name).read_text() for name in found)  # the threads that a worker was given
    assert dict(os.environ) == environment


def test_a_worker_that_dies_fails_its_own_item_and_the_pool_goes_on(tmp_path: Path) -> None:
    with LocalWorkers(work.die_once, workers=1, threads=1) as pool:
        jobs = [job(tmp_path, f"item-{name}", tmp_path) for name in "abc"]
        found = outcomes(pool, jobs)
        assert {name: outcome.kind for name, outcome in found.items()} == {
            "item-a": "done",
            "item-b": "failed",
            "item-c": "done",
        }
        assert found["item-b"].reason == "its worker process was killed by SIGKILL (often: out of memory)"
        assert outcomes(pool, jobs[1:2])["item-b"].kind == "done"


def test_leaving_the_block_ends_a_process_in_the_middle_of_its_work(tmp_path: Path) -> None:
    with LocalWorkers(work.report_pid, workers=1, threads=1) as pool:
        pool.submit(job(tmp_path, "a", tmp_path))
        while not (pids := list(tmp_path.glob("pid-*"))):
            time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pids[0].name.removeprefix("pid-")), 0)
    assert not (tmp_path / "a").exists()


def test_a_function_that_a_worker_cannot_import_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("only_in_this_process")
    exec("def function(item, target): ...", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with LocalWorkers(module.function, workers=1, threads=1) as pool:
        pool.submit(job(tmp_path, "a", "item"))
        (outcome,) = pool.wait(60)
    assert (outcome.name, outcome.kind) == ("", "usage")
    assert "cannot import the function: ModuleNotFoundError" in outcome.reason

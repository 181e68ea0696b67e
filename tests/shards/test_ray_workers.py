"""map_shards on a Ray cluster of two CPUs: the bytes of local workers, and the same answers to faults."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import shard_functions as work
from needed import package
from tenfold.errors import UsageError
from tenfold.shards.executor import FailedShards, map_shards

TEXTS = [f"to be or not to be that is question number {number}" for number in range(8)]


def contents(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.iterdir() if p.name != ".lock"}


def test_an_address_where_nobody_answers_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UsageError, match=r"RAY_ADDRESS = '127.0.0.1:1': no Ray cluster answers"):
        map_shards(work.fail_on_b, ["a"], tmp_path, settings={}, executor="ray")


@pytest.fixture(scope="module")
def ray_of_two() -> Iterator[None]:
    """A local Ray cluster of two CPUs."""
    ray = package("ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("ray_of_two")
def test_ray_writes_the_bytes_of_local_workers(tmp_path: Path) -> None:
    found = []
    for executor in ("local", "ray"):
        out = tmp_path / executor
        map_shards(work.count_words, TEXTS, out, settings={"v": 1}, workers=2, executor=executor)
        found.append(contents(out))
    assert found[0] == found[1]
    assert len(found[0]) == 9
    again = map_shards(work.count_words, TEXTS, tmp_path / "ray", settings={"v": 1}, workers=2, executor="local")
    assert again.skipped == 8


@pytest.mark.usefixtures("ray_of_two")
def test_a_ray_worker_that_dies_is_a_failed_attempt(tmp_path: Path) -> None:
    names = ["item-a", "item-b", "item-c"]
    rest = iter(names)
    result = map_shards(
        work.die_once,
        [tmp_path] * 3,
        tmp_path / "out",
        settings={},
        workers=2,
        executor="ray",
        name=lambda _: next(rest),
    )
    assert (result.done, result.retried) == (3, 1)
    assert (tmp_path / "out/item-b").read_text() == "b"
    with pytest.raises(FailedShards, match=r"(?s)1 of 4 shards.*b: ValueError: this one is broken"):
        map_shards(work.fail_on_b, ["a", "b", "c", "d"], tmp_path / "letters", settings={}, workers=2, executor="ray")

"""The scheduler admits in order of arrival, keeps prompts within a chunk, and preempts the youngest when pages run out."""

from __future__ import annotations

from language.engine_models import tiny_llama
from tenfold.language.decoding.prefix_cache import PrefixCache
from tenfold.language.decoding.request import Request
from tenfold.language.decoding.runner import Runner
from tenfold.language.decoding.scheduler import Scheduler
from tenfold.language.sampling.sampling import SamplingParams


def scheduler(pages: int, max_batch: int = 4, chunk: int = 6) -> Scheduler:
    runner = Runner(tiny_llama(), None, pages, 4)
    return Scheduler(runner, PrefixCache(runner, 0), max_batch, chunk)


def request(name: str, length: int) -> Request:
    return Request(name, [1] * length, SamplingParams(max_tokens=8), seed=0, tokenizer=None, stops=frozenset())


def names(requests: object) -> list[str]:
    return [r.id for r in requests]  # type: ignore[attr-defined]


def test_requests_are_admitted_in_order_until_the_batch_or_the_pages_are_full() -> None:
    own = scheduler(pages=40, max_batch=2)
    for name in "abc":
        own.add(request(name, 5))
    own.admit()
    assert (names(own.running), names(own.waiting)) == (["a", "b"], ["c"])
    small = scheduler(pages=3)
    small.add(request("long", 12))  # its text and one page more do not fit
    small.add(request("short", 2))
    small.admit()
    assert (names(small.running), names(small.waiting)) == ([], ["long", "short"])


def test_the_rows_of_a_pass_stay_within_the_chunk() -> None:
    own = scheduler(pages=40, chunk=6)
    for name, length in (("a", 5), ("b", 9), ("c", 4)):
        own.add(request(name, length))
    own.admit()
    seen = dict.fromkeys("abc", 0)
    while parts := own.prompts():
        assert 0 < sum(count for _, count in parts) <= 6
        own.runner.prefill(parts)
        for r, count in parts:
            seen[r.id] += count
    assert seen == {"a": 4, "b": 8, "c": 3}
    assert all(r.ready for r in own.running)


def test_the_youngest_is_preempted_and_waits_first_in_line() -> None:
    own = scheduler(pages=4, chunk=100)
    for name in "ab":
        own.add(request(name, 4))
    own.admit()
    own.runner.prefill(own.prompts())
    own.add(request("c", 1))
    able = own.decodable(nodes=9)  # 13 rows each: four pages
    assert names(able) == ["a"]
    assert own.preemptions == 1
    assert names(own.waiting) == ["b", "c"]
    assert own.waiting[0].table is None
    assert own.waiting[0].rows == 0


def test_a_removed_request_frees_its_pages_wherever_it_was() -> None:
    own = scheduler(pages=8, max_batch=1)
    for name in "ab":
        own.add(request(name, 6))
    own.admit()
    own.prompts()
    assert own.runner.pages.free < 8
    assert own.remove("a") is not None
    assert own.remove("b") is not None
    assert own.remove("b") is None
    assert own.runner.pages.free == 8

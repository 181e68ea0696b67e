"""`map_shards`: a function over many items, one output per item, on this machine's processes or on a Ray cluster.

    def curate(image: str, target: Path) -> None:           # at the top level of a module
        target.write_bytes(...)

    result = map_shards(curate, images, out, settings={"side": 224}, workers=8, name=lambda image: f"{image}.npy")

What a caller may rely on:
- A final name in `out` never holds half an output, and holds the same bytes for any number of workers, on any executor,
  and after any kill, as long as the function depends only on its item. Global generators (random, numpy, and torch where
  the function's module imports it) are seeded from the item, threads per worker are fixed, and sets of strings have one order.
- Running again does what is missing. Finished shards are checked against the journal (size and SHA-256) and redone when
  they differ or when their item has changed.
- A failed item is tried again after the others, then reported with its reason; the others are kept. A worker that dies
  (out of memory, segfault) is a failed attempt of its item.

    items ─> [pending] ─> worker: function(item, .tmp-PID-NAME) ─> hash, fsync, rename ─> journal line ─> result
                  └────────────── failed, attempts left ──────────────┘
"""

from __future__ import annotations

import functools
import json
import pickle
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from tenfold.config import require, to_dict
from tenfold.data.lock import held
from tenfold.data.progress import Progress
from tenfold.errors import DataError, StorageError, UsageError, unknown_name
from tenfold.shards.attempt import Function, Job, Outcome, item_seed
from tenfold.shards.journal import NAME, Entry, Journal, make_header
from tenfold.shards.shard_names import check_names, clear_temporaries, refuse_strangers

Item = TypeVar("Item")
F = TypeVar("F", bound=Callable[..., object])
FormerItem = tuple[Any, Callable[[], bool]]
LOCK = ".lock"
LISTED = 20  # failures that a message names; the journal has all


@dataclass(frozen=True)
class Shards:
    """What a call did. `paths` are in the order of the items; those in `failures` (name to reason) do not exist."""

    paths: tuple[Path, ...]
    done: int = 0
    skipped: int = 0
    retried: int = 0
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        return len(self.failures)


class FailedShards(DataError):
    """Some items failed in every attempt. `result` has the failures with their reasons, and all that was finished."""

    def __init__(self, out: Path, result: Shards) -> None:
        self.result = result
        listed = list(result.failures.items())[:LISTED]
        more = result.failed - len(listed)
        lines = [f"  {name}: {reason}" for name, reason in listed]
        lines += [f"  and {more} more, in {out / NAME}"] if more else []
        super().__init__(
            f"{result.failed} of {len(result.paths)} shards in {out} failed; the others are kept.\n"
            + "\n".join(lines)
            + "\nCorrect the input and run again: only what is missing is done."
        )


@runtime_checkable
class Workers(Protocol):
    """An executor: takes jobs while it has room and gives back outcomes; leaving its block ends its processes."""

    @property
    def busy(self) -> int: ...
    @property
    def free(self) -> int: ...
    def submit(self, job: Job) -> None: ...
    def wait(self, seconds: float) -> list[Outcome]: ...
    def __enter__(self) -> Workers: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def map_function(map_id: str, *, formerly: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Gives a map function an id that does not change when its file moves; the journal stores it.

    @map_function("vision.embed_rows", formerly=("tenfold.vision.curation.embeddings:embed_rows",))
    def embed_rows(...): ...

    formerly: ids under which earlier versions wrote the same bytes; folders of theirs are continued.
    """

    def mark(function: F) -> F:
        function.map_id, function.formerly = map_id, formerly  # type: ignore[attr-defined]
        return function

    return mark


def map_shards(
    function: Callable[[Item, Path], object],
    items: Iterable[Item],
    out: Path,
    *,
    settings: Any,
    executor: Literal["local", "ray"] = "local",
    workers: int = 1,
    threads: int = 1,
    retries: int = 2,
    name: Callable[[Item], str] = str,
    label: str = "shards",
    former_item: Callable[[Item, Path], FormerItem] | None = None,
) -> Shards:
    """Calls `function(item, target)` for every item in a worker process; `target` becomes `out / name(item)`.

    function: importable by name (top level of a module), or a functools.partial of such a function. It writes a file or
        a folder at `target`, which does not exist yet; it must depend on its item, its settings and nothing else. The
        journal knows it by its `map_function` id, or else by `module:qualname`.
    items: picklable values. `name` gives each a file name of its own, stable between runs; "a/b.tif" makes folders.
    settings: whatever else the bytes depend on (a dataclass or JSON values). Other settings, another function or another
        number of threads refuse the folder.
    threads: threads of each worker's libraries. retries: further attempts of a failed item. label: for the progress line.
    former_item: what an earlier version gave for an item whose shard lies at a path, and a function that says whether that
        shard is still right. If it is, it counts as this item's, and is journalled so.

    Raises FailedShards (exit 3) at the end when items failed in every attempt; UsageError for names that clash, a folder
    that other settings made, or when the function raised one; LockHeld when another process works in `out`; StorageError
    (exit 4) when the disk is full. After any of them, and after Ctrl-C or a kill, the same call continues from there.
    """
    require(workers >= 1, "workers", workers, "a whole number >= 1")
    require(threads >= 1, "threads", threads, "a whole number >= 1")
    require(retries >= 0, "retries", retries, "a whole number >= 0")
    start_workers = workers_of(executor)
    header, formerly = _header(function, threads, settings)
    out = Path(out).absolute()  # a worker may have another working folder
    named = check_names(items, name)
    with held(out / LOCK, "folder of shards"):
        if not (out / NAME).exists():
            refuse_strangers(out, named)
        journal = Journal.open(out, header, formerly)
        finished = False
        try:
            clear_temporaries(out, named)
            run = _Run(out, journal, named, retries, former_item)
            if run.pending:
                with (
                    Progress(label, len(named), done=run.skipped) as progress,
                    start_workers(function, min(workers, len(run.pending)), threads) as pool,
                ):
                    run.drive(pool, progress)
            finished = not run.failures
        finally:
            clear_temporaries(out, named)
            journal.close(named if finished else None)
    result = run.result()
    if run.failures:
        raise FailedShards(out, result)
    return result


class _Run:
    """The state of one call: what is pending, how often each item was tried, what came of it."""

    def __init__(
        self,
        out: Path,
        journal: Journal,
        named: dict[str, Any],
        retries: int,
        former_item: Callable[[Any, Path], FormerItem] | None = None,
    ) -> None:
        self.out, self.journal, self.named, self.retries = out, journal, named, retries
        self.former_item = former_item
        self.fingerprints = {name: fingerprint(item) for name, item in named.items()}
        self.pending = deque(name for name in named if not self._is_finished(name))
        self.skipped = len(named) - len(self.pending)
        self.attempts: dict[str, int] = {}
        self.failures: dict[str, str] = {}
        self.done = 0

    def drive(self, pool: Workers, progress: Progress) -> None:
        """Keeps the pool full until nothing is pending and nothing runs."""
        while self.pending or pool.busy:
            while self.pending and pool.free > 0:
                pool.submit(self._job(self.pending.popleft()))
            for outcome in pool.wait(1.0):
                if self._settle(outcome):
                    progress.advance()
            progress.tick()

    def result(self) -> Shards:
        retried = sum(count > 1 for count in self.attempts.values())
        failures = {name: self.failures[name] for name in self.named if name in self.failures}
        return Shards(tuple(self.out / name for name in self.named), self.done, self.skipped, retried, failures)

    def _is_finished(self, name: str) -> bool:
        entry = self.journal.finished(name)
        if entry is None or not entry.holds(self.out / name):
            return False
        if entry.item == self.fingerprints[name]:
            return True
        if self.former_item is None:
            return False
        former, still = self.former_item(self.named[name], self.out / name)
        if entry.item != fingerprint(former) or not still():
            return False
        self.journal.add(replace(entry, item=self.fingerprints[name]))
        return True

    def _job(self, name: str) -> Job:
        return Job(name, _pickled(self.named[name]), self.out / name, item_seed(self.journal.header["hash"], name))

    def _settle(self, outcome: Outcome) -> bool:
        """Journals an outcome. True when its item is through, well or not; raises when the run must stop."""
        name, reason = outcome.name, outcome.reason
        if outcome.kind == "usage":
            raise UsageError(f"{name}: {reason}" if name else reason)
        if outcome.kind == "storage":
            raise StorageError(reason)
        self.attempts[name] = self.attempts.get(name, 0) + 1
        if outcome.kind == "done" and not (self.out / name).exists():
            reason = f"the worker's output is not in {self.out}: every node must see the same storage there"
        elif outcome.kind == "done":
            self.journal.add(Entry(name, self.fingerprints[name], outcome.size, outcome.sha256))
            self.done += 1
            return True
        if self.attempts[name] <= self.retries:
            self.pending.append(name)
            return False
        self.failures[name] = reason
        self.journal.failed(name, reason)
        return True


def fingerprint(item: Any) -> str:
    """SHA-256 of an item's value: of its JSON where it has one, of its pickle otherwise."""
    canonical = json.dumps(to_dict(item), sort_keys=True, default=lambda part: sha256(_pickled(part)).hexdigest())
    return sha256(canonical.encode()).hexdigest()


def _pickled(item: Any) -> bytes:
    try:
        return pickle.dumps(item, protocol=4)
    except Exception as error:
        raise UsageError(f"the item {item!r} cannot be sent to a worker process: {error}.") from error


def workers_of(name: str) -> Callable[[Function, int, int], Workers]:
    """What starts the workers of an executor: (function, how many, threads of each). Raises UsageError for an unknown one."""
    if name == "ray":
        from tenfold.shards.ray_workers import RayWorkers

        return RayWorkers
    if name == "local":
        from tenfold.shards.workers import LocalWorkers

        return LocalWorkers
    raise unknown_name("executor", name, ("local", "ray"))


def _header(function: Any, threads: int, settings: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The journal's header, and those under which earlier versions wrote the same bytes."""
    bound: dict[str, Any] = {}
    inner = function
    if isinstance(function, functools.partial):
        inner, bound = function.func, {"bound": to_dict([function.args, function.keywords])}
    name = getattr(inner, "map_id", None) or _place(inner)
    try:
        pickle.dumps(function)
    except Exception as error:
        raise UsageError(
            f"function = {name}: allowed is a function at the top level of a module, which a worker can import ({error})."
        ) from error
    made_by = {**bound, "threads": threads, "settings": to_dict(settings)}
    header, *formerly = [make_header({"function": n, **made_by}) for n in (name, *getattr(inner, "formerly", ()))]
    return header, formerly


def _place(function: Any) -> str:
    """`module:qualname`, the id of a function that has none of its own."""
    return f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', type(function).__qualname__)}"

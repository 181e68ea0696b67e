"""Worker processes on this machine: one pipe each, so that a death is known to be the death of one item's attempt.

(concurrent.futures breaks the whole pool when one process dies and cannot say which item did it.)

    with LocalWorkers(function, workers=4, threads=1) as pool:
        pool.submit(job)
        for outcome in pool.wait(1.0): ...
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType

from tenfold.errors import TenfoldError
from tenfold.shards.attempt import Function, Job, Outcome, attempt, thread_environment

STARTS = 3  # deaths in a row, before a worker is ready, after which starting again is pointless


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    connection: Connection
    ready: bool = False
    job: Job | None = None


class LocalWorkers:
    """At most `workers` processes, started when there is work for them. Leaving the block ends them."""

    def __init__(self, function: Function, workers: int, threads: int) -> None:
        self._function, self._limit, self._threads = pickle.dumps(function), workers, threads
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def __enter__(self) -> LocalWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.connection.close()  # an idle worker reads the end of its pipe and leaves
            if worker.job is not None or not worker.ready:
                worker.process.kill()
        for worker in self._workers:
            worker.process.join(5)
            worker.process.kill()
            worker.process.join()

    @property
    def busy(self) -> int:
        return sum(worker.job is not None for worker in self._workers)

    @property
    def free(self) -> int:
        return self._limit - self.busy

    def submit(self, job: Job) -> None:
        """Gives a job to a free worker."""
        assert self.free, "no worker is free"
        worker = next((w for w in self._workers if w.job is None), None)
        if worker is None:
            worker = self._start()
        try:
            worker.connection.send(job)
        except OSError:  # it died while idle, which is not an item's attempt
            self._bury(worker)
            self.submit(job)
            return
        worker.job = job

    def wait(self, seconds: float) -> list[Outcome]:
        """Outcomes that arrive within `seconds`, among them those of workers that died."""
        handles = [w.connection for w in self._workers] + [w.process.sentinel for w in self._workers]
        ready = wait(handles, seconds)
        outcomes = []
        for worker in [w for w in self._workers if w.connection in ready or w.process.sentinel in ready]:
            try:
                if not worker.connection.poll():  # it is the process that has ended
                    raise EOFError
                message = worker.connection.recv()
            except (EOFError, OSError):
                outcomes += self._bury(worker)
                continue
            worker.ready, self._failed_starts = True, 0
            if message is not None:
                worker.job = None
                outcomes.append(message)
        return outcomes

    def _start(self) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        arguments = (theirs, self._function, self._threads)
        process = multiprocessing.get_context("spawn").Process(target=_serve, args=arguments, name="tenfold-worker")
        with _environment(thread_environment(self._threads)), _interrupts_held():
            process.start()
        theirs.close()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker

    def _bury(self, worker: _Worker) -> list[Outcome]:
        """Takes a dead worker out. Its job becomes a failed attempt, unless the worker never came to it."""
        worker.process.join()
        worker.connection.close()
        self._workers.remove(worker)
        if worker.job is None:
            return []
        end = _how_it_ended(worker.process.exitcode or 0)
        if worker.ready:
            return [Outcome(worker.job.name, "failed", f"its worker process {end}")]
        self._failed_starts += 1
        if self._failed_starts >= STARTS:
            raise TenfoldError(
                f"worker processes do not start: the last one {end}. A script that calls map_shards must do so below "
                f"`if __name__ == '__main__':`, because every worker imports it."
            )
        self.submit(worker.job)
        return []


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"left with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"was killed by {name}" + (" (often: out of memory)" if name == "SIGKILL" else "")


def _serve(connection: Connection, payload: bytes, threads: int) -> None:
    """A worker's life: says that it is ready, then answers each job, until its pipe or its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; a terminal sends Ctrl-C to every process
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        try:
            function = pickle.loads(payload)
        except Exception as error:
            reason = f"a worker process cannot import the function: {type(error).__name__}: {error}"
            connection.send(Outcome("", "usage", reason))
            return
        connection.send(None)
        while True:
            connection.send(attempt(function, connection.recv(), threads))
    except (EOFError, OSError):
        return


def _end_with_parent() -> None:
    """Leaves at once when the parent dies, even by kill -9 in the middle of an item."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker process"
    parent.join()
    os._exit(1)


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Stands while a process is started: a spawned child copies its parent's environment before it runs a line."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """A child starts with SIGINT blocked, so that Ctrl-C while it imports prints no traceback of its own."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

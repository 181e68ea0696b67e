"""Ray as the executor of `map_shards` past one machine.

Beside serve/replicas.py the only file that imports ray; tenfold writes no cluster of its own.

Connects to the cluster that RAY_ADDRESS names, or uses the one that this process has joined already, or starts one on this
machine for the length of the call. `out` must be on storage that every node sees, and tenfold must be installed on each.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from types import TracebackType
from typing import Any

from tenfold.errors import MissingExtra, UsageError
from tenfold.shards.attempt import Function, Job, Outcome, attempt, thread_environment

OBJECT_STORE = 100 * 2**20  # bytes: jobs and outcomes are small, shards go through files


class RayWorkers:
    """At most `workers` tasks in flight, `threads` CPUs each; the same worker function as on one machine.

    A task whose process or node dies comes back as a failed attempt. Raises MissingExtra without ray and UsageError when
    no cluster answers at RAY_ADDRESS.
    """

    def __init__(self, function: Function, workers: int, threads: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingExtra("ray", "cluster", "executor='ray'") from error
        self._ray, self._limit = ray, workers
        self._ours = not ray.is_initialized()
        if self._ours:
            join(ray, workers * threads)
        environment = {"env_vars": {**thread_environment(threads), "PYTHONPATH": own_folders()}}
        # Retries are counted by map_shards, for every executor alike.
        self._task = ray.remote(attempt).options(num_cpus=threads, max_retries=0, runtime_env=environment)
        self._function, self._threads = ray.put(function), threads
        self._jobs: dict[Any, Job] = {}

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for reference in self._jobs:
            with contextlib.suppress(Exception):  # it may have ended by itself
                self._ray.cancel(reference, force=True)
        if self._ours:
            self._ray.shutdown()

    @property
    def busy(self) -> int:
        return len(self._jobs)

    @property
    def free(self) -> int:
        return self._limit - self.busy

    def submit(self, job: Job) -> None:
        self._jobs[self._task.remote(self._function, job, self._threads)] = job

    def wait(self, seconds: float) -> list[Outcome]:
        """Outcomes that arrive within `seconds`."""
        if not self._jobs:
            return []
        ready, _ = self._ray.wait(list(self._jobs), num_returns=1, timeout=seconds)
        return [self._outcome(reference) for reference in ready]

    def _outcome(self, reference: Any) -> Outcome:
        job = self._jobs.pop(reference)
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RuntimeEnvSetupError as error:
            return Outcome(job.name, "usage", f"Ray could not prepare its workers: {error}")
        except self._ray.exceptions.RayTaskError as error:  # `attempt` never raises: a module is missing on that node
            return Outcome(job.name, "usage", f"a Ray worker cannot run the function: {error.cause or error}")
        except self._ray.exceptions.RayError as error:
            return Outcome(job.name, "failed", f"its worker died: {str(error).splitlines()[0]}")


def own_folders() -> str:
    """The folders on this process's module path besides the interpreter's: where the caller's function is found. A
    spawned process gets them by itself, a Ray worker does not; a node without such a folder passes over it."""
    installed = (sys.prefix, sys.base_prefix)
    return os.pathsep.join(os.path.abspath(p) for p in sys.path if not p.startswith(installed))  # noqa: PTH100 ("" is here)


def join(ray: Any, cpus: int) -> None:
    """Joins the cluster at RAY_ADDRESS, or starts one with so many CPUs on this machine. Raises UsageError when nothing
    answers at the address."""
    address = os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if not address:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read by the processes that init starts
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"RAY_ADDRESS = {address!r}: no Ray cluster answers there ({str(error).splitlines()[0]}). Start one "
            f"(ray start --head), correct the address, or unset RAY_ADDRESS to use only this machine."
        ) from error

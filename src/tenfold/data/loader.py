"""An endless shuffled stream of batches whose position is one number, the same for any number of ranks and workers.

    loader = Loader(source, transform, batch=64, seed=0, collate=stack)
    for batch in loader: ...
    state = loader.state_dict()                          {"samples": 6400, "size": 9469, "seed": 0}
    other.load_state_dict(state)                         continues with the very next batch

The stream is one permutation after another; a batch may take the end of one and the start of the next, so no image is
dropped, and a source smaller than a batch is shown several times in it. `batch` is the global batch: rank r of w takes
the r-th contiguous part. A sample's random numbers come from (seed, its place in the stream), never from who draws them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from tenfold.data.sample import Sample
from tenfold.data.sources import Source, too_many_unreadable
from tenfold.errors import DataError, UsageError

ORDER, DRAWS = 0, 1  # two independent families of random numbers under one seed
TRIES = 100  # neighbours tried in place of an unreadable image

Transform = Callable[[Sample, np.random.Generator], Any]
Failures = dict[int, str]  # index of an unreadable image -> why


class Loader:
    """Batches of `collate([transform(sample, generator), ...])`.

    `workers` processes prepare batches in advance (0: this process does it when asked); the samples are the same. An image
    that cannot be read is replaced by the next readable one of the source and counted; when more than `error_rate` of
    the source has proved unreadable, DataError names the files.

    Raises UsageError when `batch` does not divide by `world`.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        batch: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        collate: Callable[[list[Any]], Any] = list,
        error_rate: float = 0.01,
    ) -> None:
        if len(source) == 0:
            raise DataError("there is nothing to load: the source holds no images.")
        if batch < 1 or batch % world:
            below, above = batch // world * world, (batch // world + 1) * world
            near = f"{below} or {above}" if below else f"{above}"
            raise UsageError(f"batch = {batch} does not divide by {world} ranks. The nearest that do: {near}.")
        self.batch, self.seed, self.rank, self.world = batch, seed, rank, world
        self.workers, self.error_rate, self.size = workers, error_rate, len(source)
        self.unreadable: Failures = {}
        self._position = 0  # samples handed out, over all ranks
        self._build = _Build(source, transform, collate, seed)

    def __iter__(self) -> Iterator[Any]:
        """Continues from the saved position. Moving it with `load_state_dict` also moves iterators that are running."""
        while True:
            expected = self._position
            for batch, failures in self._stream(expected):
                self._count(failures)
                self._position = expected = expected + self.batch
                yield batch
                if self._position != expected:
                    break

    def state_dict(self) -> dict[str, Any]:
        """The position after the batches handed out; what workers prepared in advance does not count."""
        return {"samples": self._position, "size": self.size, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moves to a saved position. Raises DataError when it belongs to another source or seed."""
        for name, have in (("size", self.size), ("seed", self.seed)):
            if state[name] != have:
                raise DataError(
                    f"the saved position belongs to data of {name} {state[name]}, and this is {name} {have}: "
                    f"the order would not be the same. Resume with the data and seed that the run began with."
                )
        self._position = int(state["samples"])

    def _positions(self, start: int) -> Iterator[range]:
        """This rank's places in the stream, batch after batch."""
        share = self.batch // self.world
        while True:
            first = start + self.rank * share
            yield range(first, first + share)
            start += self.batch

    def _stream(self, start: int) -> Iterator[tuple[Any, Failures]]:
        if self.workers == 0:
            for places in self._positions(start):
                yield self._result(self._build(places))
        loader = torch.utils.data.DataLoader(
            _Places(self._build),
            sampler=_Endless(self._positions(start)),
            batch_size=None,  # an item is a whole batch, built and collated in the worker
            collate_fn=_as_built,
            num_workers=self.workers,
            prefetch_factor=2,
            persistent_workers=True,
            generator=torch.Generator(),  # its own: a draw from torch's would change what a resumed run draws next
            # A forked worker shares the decoded images; elsewhere they are pickled to it.
            multiprocessing_context="fork" if sys.platform == "linux" else None,
        )
        for built in loader:
            yield self._result(built)

    def _result(self, built: tuple[Any, Failures]) -> tuple[Any, Failures]:
        if isinstance(built[0], DataError):
            raise built[0]
        return built

    def _count(self, failures: Failures) -> None:
        self.unreadable.update(failures)
        if len(self.unreadable) > self.error_rate * self.size:
            raise too_many_unreadable(list(self.unreadable.values()), self.size, self.error_rate)


class _Build:
    """Places of the stream -> a collated batch; a pure function of (source, seed), wherever it runs."""

    def __init__(self, source: Source, transform: Transform, collate: Callable[[list[Any]], Any], seed: int) -> None:
        self.source, self.transform, self.collate, self.seed = source, transform, collate, seed
        self._orders: dict[int, np.ndarray] = {}

    def __call__(self, places: Sequence[int]) -> tuple[Any, Failures]:
        """The batch and what could not be read. A DataError in the batch's stead is data: raised in a worker, torch
        would wrap it in a traceback."""
        failures: Failures = {}
        try:
            items = []
            for place in places:
                sample = self._read(self._index(place), failures)
                items.append(self.transform(sample, np.random.default_rng((self.seed, DRAWS, place))))
            return self.collate(items), failures
        except DataError as error:
            return error, failures

    def _index(self, place: int) -> int:
        epoch, offset = divmod(place, len(self.source))
        if epoch not in self._orders:
            order = np.random.default_rng((self.seed, ORDER, epoch)).permutation(len(self.source))
            self._orders = {**{e: o for e, o in self._orders.items() if e == epoch - 1}, epoch: order}
        return int(self._orders[epoch][offset])

    def _read(self, index: int, failures: Failures) -> Sample:
        for step in range(min(TRIES, len(self.source))):
            at = (index + step) % len(self.source)
            try:
                return self.source[at]
            except DataError as error:
                failures[at] = str(error)
        raise DataError(f"{len(failures)} images in a row cannot be read: {next(iter(failures.values()))}")


def _as_built(batch: Any) -> Any:
    """torch's default would turn tuples into lists and arrays into tensors."""
    return batch


class _Places(torch.utils.data.Dataset[Any]):
    def __init__(self, build: _Build) -> None:
        self.build = build

    def __getitem__(self, places: range) -> tuple[Any, Failures]:
        return self.build(places)


class _Endless(torch.utils.data.Sampler[range]):
    def __init__(self, places: Iterator[range]) -> None:
        self.places = places

    def __iter__(self) -> Iterator[range]:
        return self.places

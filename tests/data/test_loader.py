"""The stream is a pure function of seed and place: the same for any ranks, workers, and after any resume."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from tenfold.data.loader import Loader
from tenfold.data.sample import Sample
from tenfold.errors import DataError, UsageError


class Numbers:
    """Row i is a picture filled with i; `broken` rows cannot be read."""

    classes = ()
    labels = None

    def __init__(self, size: int, broken: tuple[int, ...] = ()) -> None:
        self.size, self.broken = size, broken

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        if index in self.broken:
            raise DataError(f"row {index} is broken.")
        return Sample(np.full((1, 1, 3), index, np.uint8), None, f"row {index}")


def drawn(sample: Sample, generator: np.random.Generator) -> tuple[int, float]:
    return int(sample.image[0, 0, 0]), float(generator.random())


def loader(size: int = 37, batch: int = 8, **options: Any) -> Loader:
    source = options.pop("source", Numbers(size))
    return Loader(source, drawn, batch, **{"seed": 3, "collate": list, **options})


def take(stream: Any, count: int) -> list[Any]:
    return list(islice(stream, count))


def test_every_epoch_shows_every_image_once_and_no_two_alike() -> None:
    rows = [row for batch in take(loader(), 37) for row, _ in batch]
    epochs = np.array(rows).reshape(8, 37)
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 8


def test_draws_differ_between_samples_and_epochs() -> None:
    values = [value for batch in take(loader(), 37) for _, value in batch]
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_batches_in_order_are_the_batch_of_one_process(world: int) -> None:
    single = take(loader(), 12)
    ranks = [take(loader(rank=rank, world=world), 12) for rank in range(world)]
    assert [[row for rank in ranks for row in rank[step]] for step in range(12)] == single


def test_workers_give_the_same_samples() -> None:
    assert take(loader(workers=2), 12) == take(loader(), 12)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_goes_on_with_the_very_next_batch(workers: int) -> None:
    straight = take(loader(), 20)
    first = loader(workers=workers)
    assert take(first, 7) == straight[:7]
    second = loader(workers=workers, rank=1, world=2)
    second.load_state_dict(first.state_dict())
    assert take(second, 13) == [batch[4:] for batch in straight[7:]]
    assert first.state_dict() == {"samples": 56, "size": 37, "seed": 3}


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_draws_nothing_from_the_global_generators(workers: int) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[union-attr,index]
    take(loader(workers=workers), 3)
    assert torch.equal(torch.random.get_rng_state(), expected[0])
    assert np.random.get_state()[1].tolist() == expected[1]  # type: ignore[union-attr,index]


@pytest.mark.parametrize("workers", [0, 2])
def test_moving_the_position_moves_a_running_stream(workers: int) -> None:
    straight = take(loader(), 6)
    moving = loader(workers=workers)
    stream = iter(moving)
    assert take(stream, 5) == straight[:5]
    moving.load_state_dict({"samples": 16, "size": 37, "seed": 3})
    assert take(stream, 4) == straight[2:]


def test_a_source_smaller_than_the_batch_is_shown_several_times() -> None:
    rows = [row for row, _ in next(iter(loader(size=3, batch=8)))]
    assert [sorted(rows[:3]), sorted(rows[3:6])] == [[0, 1, 2], [0, 1, 2]]


def test_an_unreadable_row_is_replaced_alike_everywhere() -> None:
    source = Numbers(37, broken=(5, 6, 36))
    straight = take(loader(source=source, error_rate=0.1), 12)
    rows = {row for batch in straight for row, _ in batch}
    assert rows == set(range(37)) - {5, 6, 36}
    assert take(loader(source=source, error_rate=0.1, workers=2), 12) == straight
    halves = [take(loader(source=source, error_rate=0.1, rank=rank, world=2), 12) for rank in range(2)]
    assert [a + b for a, b in zip(*halves)] == straight


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_ends_with_a_data_error(workers: int) -> None:
    source = Numbers(9, broken=tuple(range(9)))
    with pytest.raises(DataError, match="9 images in a row cannot be read: row") as caught:
        take(loader(source=source, batch=2, error_rate=0.99, workers=workers), 1)
    assert "Traceback" not in str(caught.value)


def test_a_batch_that_does_not_divide_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"batch = 10 does not divide by 4 ranks.*8 or 12"):
        loader(batch=10, world=4)


def test_an_empty_source_and_a_foreign_position_are_refused() -> None:
    with pytest.raises(DataError, match="nothing to load"):
        loader(source=Numbers(0))
    with pytest.raises(DataError, match="data of size 38, and this is size 37"):
        loader().load_state_dict({"samples": 8, "size": 38, "seed": 3})

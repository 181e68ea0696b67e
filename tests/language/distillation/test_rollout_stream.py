"""The stream of rollouts shows every one, splits over ranks, and goes on from a saved place with the same batches."""

from __future__ import annotations

import pytest
import torch

from language.drafting_models import tiny_rollouts, tiny_target
from tenfold.engine.task import Shard
from tenfold.errors import UsageError
from tenfold.language.distillation.recipes import eagle3_smoke
from tenfold.language.distillation.rollout_rounds import RolloutRounds
from tenfold.language.distillation.rollout_stream import RolloutStream, batches_of


def test_a_pass_takes_whole_batches_of_different_rollouts_and_is_the_same_for_its_key() -> None:
    rollouts = tiny_rollouts(tiny_target(), 10)
    found = batches_of(rollouts, 3, (0, 1, 2))
    flat = [i for batch in found for i in batch]
    assert len(flat) == len(set(flat)) == 9
    assert {len(batch) for batch in found} == {3}
    assert batches_of(rollouts, 3, (0, 1, 2)) == found != batches_of(rollouts, 3, (0, 1, 3))
    with pytest.raises(UsageError, match="batch = 11, but a round has 10"):
        batches_of(rollouts, 11, (0, 0, 0))


def test_a_stream_goes_on_from_its_state() -> None:
    rounds = RolloutRounds(eagle3_smoke().rollouts, "random-tiny", None, seed=3)
    stream = RolloutStream(rounds, 4, Shard(), 0)
    batches = iter(stream)
    for _ in range(3):
        next(batches)
    again = RolloutStream(rounds, 4, Shard(), 0)
    again.load_state_dict(stream.state_dict())
    assert torch.equal(next(iter(again))["tokens"], next(batches)["tokens"])


def test_stream_shows_every_answer_and_splits_over_ranks() -> None:
    rounds = RolloutRounds(eagle3_smoke().rollouts, "random-tiny", None, seed=3)
    whole = RolloutStream(rounds, 4, Shard(), 0)
    parts = [RolloutStream(rounds, 4, Shard(rank, 2), 0) for rank in (0, 1)]
    for batch, *own in zip(range(7), *parts):
        one = next(iter(whole))
        both = [row[row != 0].tolist() for part in own for row in part["tokens"]]
        assert sorted(row[row != 0].tolist() for row in one["tokens"]) == sorted(both), batch
    with pytest.raises(UsageError, match="ranks"):
        RolloutStream(rounds, 3, Shard(0, 2), 0)

"""Batches of rollouts for training a drafter: an endless stream in a seeded order, the same for any number of ranks.

    stream = RolloutStream(rounds, batch=4, shard=Shard(), seed=0)
    for batch in stream: ...                           `rollouts.collate`; state_dict() is the place in the stream

Rollouts of like length share a batch, so that little of it is padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tenfold.engine.task import Shard
from tenfold.errors import UsageError
from tenfold.language.distillation.rollout_rounds import RolloutRounds
from tenfold.language.distillation.rollouts import Rollout, collate

WINDOW = 16  # batches whose rollouts are put side by side by length


class RolloutStream:
    """An endless stream of batches (`rollouts.collate`), the same for any number of ranks; see engine/task.py, Batches."""

    def __init__(self, rounds: RolloutRounds, batch: int, shard: Shard, seed: int) -> None:
        if batch % shard.world:
            raise UsageError(f"batch = {batch} does not divide by {shard.world} ranks.")
        self.rounds, self.batch, self.shard, self.seed = rounds, batch, shard, seed
        self.at = (0, 0, 0)  # round, pass, batch

    def __iter__(self) -> Iterator[Any]:
        while True:
            number, turn, start = self.at
            rollouts = self.rounds.round(number)
            order = batches_of(rollouts, self.batch, (self.seed, number, turn))
            for i in range(start, len(order)):
                last = i + 1 == len(order)
                following = (number, turn + 1, 0) if turn + 1 < self.rounds.config.reuse else (number + 1, 0, 0)
                self.at = following if last else (number, turn, i + 1)
                each = self.batch // self.shard.world
                mine = order[i][self.shard.rank * each : (self.shard.rank + 1) * each]
                yield collate([rollouts[j] for j in mine])

    def state_dict(self) -> dict[str, Any]:
        return {"at": list(self.at), "batch": self.batch, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        number, turn, start = state["at"]
        self.at = (number, turn, start)


def batches_of(rollouts: list[Rollout], batch: int, key: tuple[int, int, int]) -> list[list[int]]:
    """One pass: whole batches of indices, shuffled, with rollouts of like length in a batch. The rollouts left over when the
    last batch is not full are other ones in every pass."""
    generator = torch.Generator().manual_seed((key[0] * 1_000_003 + key[1] * 1_009 + key[2]) % 2**63)
    order = torch.randperm(len(rollouts), generator=generator).tolist()
    if len(order) < batch:
        raise UsageError(f"batch = {batch}, but a round has {len(order)} rollouts.")
    batches = []
    for start in range(0, len(order), batch * WINDOW):
        part = sorted(order[start : start + batch * WINDOW], key=lambda i: len(rollouts[i].tokens))
        batches += [part[i : i + batch] for i in range(0, len(part) - batch + 1, batch)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

"""Where a drafter's training data comes from: rounds of answers that the target writes, each used for a few passes.

    rounds = AnswerRounds(config, target="smollm2-135m-instruct", aux_layers=None, seed=0)
    rounds.round(0)                                 the answers of the first round, written now or read from `stored`
    stream = AnswerStream(rounds, batch=4, shard=Shard(), seed=0)

Online (the default): the target answers `round_answers` prompts, half of them greedily and half at temperature 1, answers
that repeat themselves are dropped, and the round stays in memory for `reuse` passes. Offline: `stored` is a folder of
shards (language/answers.py), one round of all of them. A round is a function of (seed, number) alone, so the place in the
stream is three numbers and a resumed run writes the very same round again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tenfold.engine.config import require
from tenfold.engine.task import Shard
from tenfold.errors import UsageError
from tenfold.export.weights import load
from tenfold.language.answers import Answer, collate, read_answers, repeats_itself
from tenfold.language.drafter_weights import fingerprint
from tenfold.language.llama import Llama

SHORTEST = 8  # tokens of an answer that is worth a place in a batch
WINDOW = 16  # batches whose answers are put side by side by length, so that little of a batch is padding


@dataclass(frozen=True)
class AnswerConfig:
    """Prompts, and how they are answered."""

    stored: Path | None = None  # shards of answers to use instead of writing new ones
    reuse: int = 2  # passes over a round
    held_back: int = 16  # answers that are not trained on but scored

    def __post_init__(self) -> None:
        require(self.reuse >= 1, "answers.reuse", self.reuse, "a whole number >= 1")
        require(self.held_back >= 1, "answers.held_back", self.held_back, "a whole number >= 1")


class AnswerRounds:
    """See the module's docstring."""

    def __init__(self, config: AnswerConfig, target: str, aux_layers: tuple[int, ...] | None, seed: int) -> None:
        self.config, self.name, self.aux_layers, self.seed = config, target, aux_layers, seed
        self._last: tuple[int, list[Answer], list[Answer]] | None = None

    @cached_property
    def target(self) -> Llama:
        model = load(self.name)
        if not isinstance(model, Llama):
            raise UsageError(f"target = {self.name}: a {type(model).__name__}; a Llama is needed.")
        return model.requires_grad_(False)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.target)

    @property
    def special(self) -> tuple[int, ...]:
        """Ids of the chat template, which the draft vocabulary always has."""
        return (0, 1, 2)

    @cached_property
    def held_back(self) -> dict[str, list[Answer]]:
        """Greedy answers of the first round that are only scored."""
        return {"held_back": self._split(0)[0]}

    def round(self, number: int) -> list[Answer]:
        """The answers of a round, without those held back. Stored rounds start anew after the last."""
        return self._split(number)[1]

    def sample(self) -> list[Answer]:
        """What the draft vocabulary is chosen from: all stored answers, or the first round."""
        return [a for n in range(len(self._files)) for a in self._read(n)]

    def _split(self, number: int) -> tuple[list[Answer], list[Answer]]:
        if self._last is None or self._last[0] != number:
            self._last = (number, *self._divide(number, self._read(number)))
        return self._last[1], self._last[2]

    def _divide(self, number: int, answers: list[Answer]) -> tuple[list[Answer], list[Answer]]:
        kept = [a for a in answers if a.temperature == 0][: self.config.held_back] if self._index(number) == 0 else []
        marked = {id(a) for a in kept}
        return kept, [a for a in answers if id(a) not in marked]

    def _index(self, number: int) -> int:
        return number % len(self._files)

    @property
    def _files(self) -> list[Path]:
        assert self.config.stored is not None
        return sorted(self.config.stored.glob("*.safetensors"))

    def _read(self, number: int) -> list[Answer]:
        answers = read_answers(self._files[self._index(number)])
        return [a for a in answers if a.length >= SHORTEST and not repeats_itself(a.tokens[a.prompt :].tolist())]


class AnswerStream:
    """An endless stream of batches (`answers.collate`), the same for any number of ranks; see engine/task.py, Batches."""

    def __init__(self, rounds: AnswerRounds, batch: int, shard: Shard, seed: int) -> None:
        if batch % shard.world:
            raise UsageError(f"batch = {batch} does not divide by {shard.world} ranks.")
        self.rounds, self.batch, self.shard, self.seed = rounds, batch, shard, seed
        self.at = (0, 0, 0)  # round, pass, batch

    def __iter__(self) -> Iterator[Any]:
        while True:
            number, turn, start = self.at
            answers = self.rounds.round(number)
            order = batches_of(answers, self.batch, (self.seed, number, turn))
            for i in range(start, len(order)):
                last = i + 1 == len(order)
                following = (number, turn + 1, 0) if turn + 1 < self.rounds.config.reuse else (number + 1, 0, 0)
                self.at = following if last else (number, turn, i + 1)
                each = self.batch // self.shard.world
                mine = order[i][self.shard.rank * each : (self.shard.rank + 1) * each]
                yield collate([answers[j] for j in mine])

    def state_dict(self) -> dict[str, Any]:
        return {"at": list(self.at), "batch": self.batch, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        number, turn, start = state["at"]
        self.at = (number, turn, start)


def batches_of(answers: list[Answer], batch: int, key: tuple[int, int, int]) -> list[list[int]]:
    """One pass: whole batches of indices, shuffled, with answers of like length in a batch. The answers left over when the
    last batch is not full are other ones in every pass."""
    generator = torch.Generator().manual_seed((key[0] * 1_000_003 + key[1] * 1_009 + key[2]) % 2**63)
    order = torch.randperm(len(answers), generator=generator).tolist()
    if len(order) < batch:
        raise UsageError(f"batch = {batch}, but a round has {len(order)} answers.")
    batches = []
    for start in range(0, len(order), batch * WINDOW):
        part = sorted(order[start : start + batch * WINDOW], key=lambda i: len(answers[i].tokens))
        batches += [part[i : i + batch] for i in range(0, len(part) - batch + 1, batch)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

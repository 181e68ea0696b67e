"""FactWorld: generated facts, the only text of which the number of bits is known. What a model recalls of it is capacity.

    world = FactWorld(entities=2000, relations=8, values=512, seed=0)            16,000 facts of 9 bits
    tokens = world.statements(facts, templates)                                  (n, 6): what is trained
    prompts, answers = world.questions(facts)                                    (n, 5) and (n): what is asked

A fact is (entity, relation) -> value. An entity is named by three syllables of 64, so a name says nothing of the values.
Four templates put name, relation and value in different orders; each fact has one, drawn from the seed, in which it is
never trained and always asked. 5 % of the facts are never trained at all: what a model scores on them is the baseline.

Tokens start at `first_token`, so that bytes or another vocabulary may stand below them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tenfold.config import require

SYLLABLES = 64
LENGTH = 6  # tokens of a statement
# Where mark (m), the three syllables (e), relation (r) and value (v) stand; the value is last, so that it can be asked.
TEMPLATES = ("meeerv", "mreeev", "eeemrv", "rmeeev")


@dataclass(frozen=True)
class FactWorld:
    """Sizes and the seed that everything comes from. `floor` is the share of facts that are never trained."""

    entities: int = 2000
    relations: int = 8
    values: int = 512
    seed: int = 0
    floor: float = 0.05
    first_token: int = 0

    def __post_init__(self) -> None:
        most = SYLLABLES**3
        require(1 <= self.entities <= most, "world.entities", self.entities, f"a whole number from 1 to {most:,}")
        for name in ("relations", "values"):
            require(getattr(self, name) >= 1, f"world.{name}", getattr(self, name), "a whole number >= 1")
        require(0 <= self.floor < 1, "world.floor", self.floor, "a share in [0, 1)")

    @property
    def facts(self) -> int:
        """How many there are; fact f is entity f // relations and relation f % relations."""
        return self.entities * self.relations

    @property
    def bits(self) -> float:
        """What it takes to know all trained facts."""
        return len(self.trained) * float(np.log2(self.values))

    @property
    def vocabulary(self) -> int:
        """Tokens needed, those below `first_token` included."""
        return self.first_token + len(TEMPLATES) + SYLLABLES + self.relations + self.values

    @cached_property
    def answers(self) -> np.ndarray:
        """The value of every fact, int64 (facts)."""
        return self._draws(0).integers(self.values, size=self.facts)

    @cached_property
    def names(self) -> np.ndarray:
        """Syllables of every entity, int64 (entities, 3), no two alike."""
        numbers = self._draws(1).permutation(SYLLABLES**3)[: self.entities]
        return np.stack([numbers // SYLLABLES**2, numbers // SYLLABLES % SYLLABLES, numbers % SYLLABLES], 1)

    @cached_property
    def asked_in(self) -> np.ndarray:
        """The template that each fact is asked in and never trained in, int64 (facts)."""
        return self._draws(2).integers(len(TEMPLATES), size=self.facts)

    @cached_property
    def _order(self) -> np.ndarray:
        return self._draws(3).permutation(self.facts)

    @cached_property
    def untrained(self) -> np.ndarray:
        """Facts that are never trained."""
        return np.sort(self._order[: round(self.floor * self.facts)])

    @cached_property
    def trained(self) -> np.ndarray:
        return np.sort(self._order[round(self.floor * self.facts) :])

    def statements(self, facts: np.ndarray, templates: np.ndarray) -> np.ndarray:
        """Tokens of facts (n) in templates (n), int64 (n, 6)."""
        entity, relation = facts // self.relations, facts % self.relations
        syllable = self.first_token + len(TEMPLATES)
        values = syllable + SYLLABLES + self.relations
        parts = {
            "m": (self.first_token + templates)[:, None],
            "e": syllable + self.names[entity],
            "r": (syllable + SYLLABLES + relation)[:, None],
            "v": (values + self.answers[facts])[:, None],
        }
        tokens = np.empty((len(facts), LENGTH), np.int64)
        for number, order in enumerate(TEMPLATES):
            rows = templates == number
            joined = np.concatenate([parts[letter][rows] for letter in order.replace("eee", "e")], 1)
            tokens[rows] = joined
        return tokens

    def training(self, facts: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """Statements of facts (n) in templates drawn from those that each is trained in, int64 (n, 6)."""
        other = draws.integers(1, len(TEMPLATES), size=len(facts))
        return self.statements(facts, (self.asked_in[facts] + other) % len(TEMPLATES))

    def questions(self, facts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Prompts (n, 5) and the tokens that answer them (n), in each fact's unseen template."""
        tokens = self.statements(facts, self.asked_in[facts])
        return tokens[:, :-1], tokens[:, -1]

    def batch(self, position: int, rows: int, length: int) -> np.ndarray:
        """Rows of `length` tokens of training statements, end to end, int64 (rows, length). The stream goes through all
        trained facts in one order after another; `position` counts facts and may be any, so it is the whole state."""
        per_row = -(-length // LENGTH)
        places = position + np.arange(rows * per_row)
        passes, offsets = np.divmod(places, len(self.trained))
        facts = np.empty(len(places), np.int64)
        for number in np.unique(passes):
            order = self._draws(4, int(number)).permutation(self.trained)
            facts[passes == number] = order[offsets[passes == number]]
        tokens = self.training(facts, self._draws(5, position))
        return tokens.reshape(rows, per_row * LENGTH)[:, :length]

    def _draws(self, *what: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *what))

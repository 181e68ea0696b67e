"""Question answering on real facts: a protocol that separates recall from chance. A fact is (entity, field, text).

    facts = common(read_factbook("factbook.parquet"))       short answers, fields of many entities, repeats dropped
    facts = read_countries(fetch("countryinfo"))            the same kind from a 0.4 MB wheel
    book = FactBook(facts, seed=0)
    rows = book.batch(position, rows=16, length=96)         bytes of training statements
    book.question(3)                                        "Capital of Algeria: ", asked in a form not trained for it

Every field has four templates. A hash of (entity, field) picks the one that this fact is asked in and never trained in,
and the 5 % of facts that are never trained: what a model scores on those is the baseline of chance. The other baseline is the
most frequent answer of each field.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tenfold.data.archives import read_zip
from tenfold.data.parquet import parquet_rows
from tenfold.data.readers import read_json
from tenfold.errors import DataError

TEMPLATES = (
    "{entity}, {field}: {text}\n",
    "{field} of {entity}: {text}\n",
    "Q: What is the {field} of {entity}? A: {text}\n",
    "Of {entity} it is known that its {field} is {text}\n",
)
END = "\n"  # of an answer
LONGEST = 40  # characters of an answer
ENTITIES = 100  # that a field needs
CANDIDATES = 20  # answers of the same field among which the right one is ranked


@dataclass(frozen=True)
class Fact:
    """`field` of `entity` is `text`."""

    entity: str
    field: str
    text: str


def read_factbook(path: Path) -> list[Fact]:
    """Facts of a parquet file with the columns entity, field, text. Raises DataError for another."""
    columns, _ = parquet_rows(Path(path), ["entity", "field", "text"])
    rows = zip(columns["entity"], columns["field"], columns["text"], strict=True)
    facts = [Fact(*(" ".join(str(part).split()) for part in row)) for row in rows if all(row)]
    if not facts:
        raise DataError(f"{path} holds no facts.")
    return facts


COUNTRY_FIELDS = {
    "capital": "capital",
    "region": "region",
    "subregion": "subregion",
    "area": "area in square kilometres",
    "demonym": "demonym",
    "nativeName": "native name",
    "currencies": "currency",
    "tld": "internet domain",
    "callingCodes": "calling code",
}


def read_countries(folder: Path) -> list[Fact]:
    """Facts of the `countryinfo` sample (tenfold samples countryinfo). Lists are their first entry."""
    wheel = Path(folder) / "countryinfo.whl"
    record = "countryinfo-1.0.1.dist-info/RECORD"  # a wheel's own list of its files
    listed = read_zip(wheel, [record])[record].decode().splitlines()
    names = [
        n
        for n in (line.partition(",")[0] for line in listed)
        if n.startswith("countryinfo/data/") and n.endswith(".json")
    ]
    facts = []
    for name, data in read_zip(wheel, names).items():
        country = read_json(data, name)
        for key, field in COUNTRY_FIELDS.items():
            value = country.get(key)
            value = value[0] if isinstance(value, list) and value else value
            if isinstance(value, (str, int, float)) and str(value).strip():
                facts.append(Fact(str(country["name"]), field, str(value).strip()))
    return facts


def common(facts: Sequence[Fact], longest: int = LONGEST, entities: int = ENTITIES) -> list[Fact]:
    """Facts of at most `longest` characters in fields that `entities` entities have; of those that say the same of one
    entity in several fields (land use stands under geography and environment) the first."""
    short = [fact for fact in facts if len(fact.text) <= longest]
    counts = defaultdict(set)
    for fact in short:
        counts[fact.field].add(fact.entity)
    said: set[tuple[str, str]] = set()
    kept = []
    for fact in short:
        if len(counts[fact.field]) >= entities and (fact.entity, fact.text) not in said:
            said.add((fact.entity, fact.text))
            kept.append(fact)
    return kept


class FactBook:
    """Facts with their split, their statements and their questions. The stream is bytes: `vocabulary` is 256."""

    vocabulary = 256

    def __init__(self, facts: Sequence[Fact], seed: int = 0, floor: float = 0.05) -> None:
        self.facts, self.seed = tuple(facts), seed
        marks = [_hash(seed, fact) for fact in self.facts]
        self.asked_in = [mark % len(TEMPLATES) for mark in marks]
        hidden = np.array([(mark >> 8) % 10_000 < floor * 10_000 for mark in marks], bool)
        self.trained, self.untrained = np.flatnonzero(~hidden), np.flatnonzero(hidden)
        self.answers: dict[str, list[str]] = {}
        for fact in self.facts:
            self.answers.setdefault(fact.field, []).append(fact.text)
        if not len(self.trained):
            raise DataError(f"{len(self.facts)} facts leave none to train on; more are needed.")

    def statement(self, number: int, template: int) -> str:
        fact = self.facts[number]
        return TEMPLATES[template].format(entity=fact.entity, field=label(fact.field), text=fact.text)

    def question(self, number: int) -> str:
        """The statement that is never trained, up to its answer."""
        fact = self.facts[number]
        before = TEMPLATES[self.asked_in[number]].partition("{text}")[0]
        return before.format(entity=fact.entity, field=label(fact.field))

    def batch(self, position: int, rows: int, length: int) -> np.ndarray:
        """Rows of bytes of training statements, end to end, int64 (rows, length). Row r is drawn from (seed, position +
        r), so `position` counts rows and is the whole state."""
        made = np.empty((rows, length), np.int64)
        for row in range(rows):
            draws = np.random.default_rng((self.seed, 1, position + row))
            text = b""
            while len(text) < length:
                number = int(draws.choice(self.trained))
                other = int(draws.integers(1, len(TEMPLATES)))
                text += self.statement(number, (self.asked_in[number] + other) % len(TEMPLATES)).encode()
            made[row] = np.frombuffer(text[:length], np.uint8)
        return made

    def candidates(self, number: int) -> list[str]:
        """The right answer, first, and up to 19 other answers of the same field, drawn from the seed."""
        fact = self.facts[number]
        others = sorted(set(self.answers[fact.field]) - {fact.text})
        draws = np.random.default_rng((self.seed, 2, number))
        chosen = draws.permutation(len(others))[: CANDIDATES - 1]
        return [fact.text, *(others[i] for i in chosen)]

    def most_frequent(self, numbers: Sequence[int]) -> float:
        """Share of facts answered by saying each field's most frequent trained answer: the baseline of exact match."""
        trained: dict[str, Counter[str]] = defaultdict(Counter)
        for i in self.trained:
            trained[self.facts[i].field][self.facts[i].text] += 1
        best = {field: count.most_common(1)[0][0] for field, count in trained.items()}
        return float(np.mean([best.get(self.facts[i].field) == self.facts[i].text for i in numbers]))


def label(field: str) -> str:
    """A field's name in a sentence: "Geography / Area / total " is "Geography, Area, total"."""
    return ", ".join(part.strip() for part in field.split(" / ") if part.strip())


def _hash(seed: int, fact: Fact) -> int:
    words = f"{seed}\0{fact.entity}\0{fact.field}".encode()
    return int.from_bytes(hashlib.sha256(words).digest()[:8], "big")

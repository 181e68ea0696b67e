"""Language model evaluation: bits of a text (nats per byte), BLiMP minimal pairs, open questions by exact match.

    nats_per_byte(model, tokens, vocabulary.widths, length=512)         whatever the vocabulary
    tenfold eval text RUN [--val FILE]         nats a byte beside the byte frequencies' own figure
    tenfold eval blimp RUN --val blimp.parquet        grammatical minimal pairs (arXiv 1912.00582); chance is 50 %
    tenfold eval nq RUN --val nq_open.dev.jsonl.gz    exact match on open questions (arXiv 1906.00300)

At the sizes that tenfold trains, exact match on open questions is near zero: it is printed, and nothing is claimed from it.
"""

from __future__ import annotations

import gzip
import json
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float, Int
from torch import Tensor, nn

from tenfold.data.parquet import parquet_rows
from tenfold.data.progress import track
from tenfold.errors import DataError, UsageError
from tenfold.language.models.text import END, read_documents, split

if TYPE_CHECKING:
    from tenfold.language.models.language_model import LanguageModel

ROWS = 32  # sequences at once
LIMIT = 262_144  # tokens of `eval text` by default
MAX_QUESTIONS = 2**26  # bytes of a file of questions
ANSWER = 16  # tokens of an answer


@torch.no_grad()
def nats_per_byte(model: nn.Module, tokens: Int[Tensor, " n"], widths: np.ndarray, length: int) -> float:
    """Total surprise of tokens 1 to n-1 over their bytes, in windows of `length` that do not overlap: the first token of a
    window is predicted from the last of the window before alone."""
    device = next(model.parameters()).device
    nats = 0.0
    count = (len(tokens) - 1) // length
    rows = torch.stack([tokens[i * length : (i + 1) * length + 1] for i in range(count)])
    for part in rows.split(ROWS):
        part = part.to(device)
        logits = model(part[:, :-1]).logits.flatten(0, 1).float()
        nats += float(F.cross_entropy(logits, part[:, 1:].flatten(), reduction="sum"))
    return nats / int(widths[rows[:, 1:].numpy()].sum())


def unigram_floor(train: np.ndarray, held_back: np.ndarray, widths: np.ndarray) -> float:
    """Nats per byte of the held-back tokens when each is predicted by its frequency in `train` (one added to all)."""
    counts = np.bincount(train, minlength=len(widths)).astype(np.float64) + 1
    return float(-np.log(counts / counts.sum())[held_back].sum() / widths[held_back].sum())


def open_model(weights: Path) -> LanguageModel:
    """The model of a run of ours; a UsageError when it holds something else."""
    from tenfold.export.weights import load
    from tenfold.language.models.language_model import LanguageModel

    model = load(weights)
    if not isinstance(model, LanguageModel):
        raise UsageError(
            f"{weights} holds a {type(model).__name__}; this is for language models that tenfold trained (train lm-*)."
        )
    return model


@dataclass(frozen=True)
class Text:
    """Loss of a language model on text, in nats and bits per byte, beside that of the byte frequencies."""

    weights: tyro.conf.Positional[Path]  # a run of tenfold train lm-*
    val: Path | None = None  # a text file, folder or parquet; held-back documents of the standard library by default
    limit: int = LIMIT  # tokens that are read
    json: bool = False  # print as JSON


@dataclass(frozen=True)
class Pairs:
    """Share of minimal pairs whose grammatical sentence is likelier; chance is 50 %."""

    weights: tyro.conf.Positional[Path]  # a run of tenfold train lm-*
    val: Path  # parquet of pairs: columns good, bad, term
    limit: int = 2000  # pairs, spread over all phenomena
    json: bool = False  # print as JSON


@dataclass(frozen=True)
class Questions:
    """Exact match on open questions, beside always giving the most common answer."""

    weights: tyro.conf.Positional[Path]  # a run of tenfold train lm-*
    val: Path  # .jsonl(.gz): question, and the answers that count
    limit: int = 200  # questions, from the first
    json: bool = False  # print as JSON


def text(options: Text) -> dict[str, Any]:
    """`tenfold eval text`: loss on held-back documents of the standard library, or on all of `--val`."""
    model = open_model(options.weights)
    train, held_back = split(read_documents(None))
    documents = held_back if options.val is None else read_documents(options.val)
    vocabulary = model.vocabulary
    tokens = vocabulary.join(documents)[: options.limit + 1]
    length = model.config.context
    if len(tokens) <= length:
        raise DataError(f"{options.val} has {len(tokens)} tokens; more than the context of {length} are needed.")
    nats = nats_per_byte(model, torch.from_numpy(tokens.astype(np.int64)), vocabulary.widths, length)
    floor = unigram_floor(vocabulary.join(train[:100]), tokens, vocabulary.widths)
    return {
        "nats per byte": nats,
        "bits per byte": nats / float(np.log(2)),
        "nats per byte, baseline (token frequencies of the standard library)": floor,
        "tokens": str(len(tokens) - 1),
    }


def blimp(options: Pairs) -> dict[str, Any]:
    """`tenfold eval blimp`: share of pairs whose grammatical sentence is likelier, by linguistic term."""
    model = open_model(options.weights)
    columns, _ = parquet_rows(options.val, ["good", "bad", "term"])
    step = max(1, len(columns["good"]) // options.limit)  # spread over all phenomena
    pairs = list(zip(columns["good"], columns["bad"], columns["term"]))[::step]
    right: dict[str, list[float]] = {}
    for good, bad, term in track(pairs, "pairs", len(pairs)):
        first, second = log_likelihoods(model, [good, bad]).tolist()
        right.setdefault(term, []).append(float(first > second))
    result: dict[str, Any] = {"accuracy, %": 100 * float(np.mean([x for xs in right.values() for x in xs]))}
    result |= {"accuracy, %, baseline (chance)": 50.0, "pairs": str(len(pairs))}
    return result | {f"  {term}": 100 * float(np.mean(found)) for term, found in sorted(right.items())}


@torch.no_grad()
def log_likelihoods(model: LanguageModel, sentences: Sequence[str]) -> Float[Tensor, " n"]:
    """Of each sentence as a document of its own, the end included."""
    coded = [[END, *model.vocabulary.encode(s), END] for s in sentences]
    longest = max(map(len, coded))
    tokens = torch.tensor([c + [END] * (longest - len(c)) for c in coded], device=next(model.parameters()).device)
    chances = model(tokens[:, :-1]).logits.float().log_softmax(-1)
    each = chances.gather(-1, tokens[:, 1:, None])[..., 0]
    return torch.stack([row[: len(c) - 1].sum() for row, c in zip(each, coded)])


def nq(options: Questions) -> dict[str, Any]:
    """`tenfold eval nq`: greedy answers to open questions, exact match after SQuAD's normalisation."""
    model = open_model(options.weights)
    questions = read_questions(options.val)[: options.limit]
    right = 0
    for question, answers in track(questions, "questions", len(questions)):
        said = model.generate(f"Question: {question}?\nAnswer: ", max_new_tokens=ANSWER).split("\n")[0]
        right += normal(said) in {normal(answer) for answer in answers}
    common, count = Counter(normal(a) for _, answers in questions for a in set(answers)).most_common(1)[0]
    return {
        "exact match, %": 100 * right / len(questions),
        f"exact match, %, baseline (always {common!r})": 100 * count / len(questions),
        "questions": str(len(questions)),
    }


def read_questions(path: Path) -> list[tuple[str, list[str]]]:
    """(question, answers) of a JSONL file, plain or gzip. Raises DataError naming the line."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            lines = file.read(MAX_QUESTIONS).splitlines()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            found.append((str(row["question"]), [str(a) for a in row["answer"]]))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DataError(f'{path}, line {number}: expected {{"question": text, "answer": [texts]}}.') from None
    if not found:
        raise DataError(f"{path} holds no questions.")
    return found


def normal(answer: str) -> str:
    """Lower case, without punctuation, articles and double spaces (SQuAD, arXiv 1606.05250)."""
    plain = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())

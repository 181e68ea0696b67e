"""Fact recall of a language model (exact match), each number beside its baseline.

    score_world(model, world)           {"recall": 53.1, "floor": 0.2}                       per cent
    score_book(model, book, encode)     {"exact match": 31.0, "most frequent answer": 10.7, ...}

Exact match is what greedy decoding would write, found without decoding: greedy text equals the answer exactly when, fed
the answer, every one of its tokens and the end of the line after it is the likeliest next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.language.pretraining.factbook import END, FactBook
from tenfold.language.pretraining.facts import FactWorld

Encode = Callable[[str], list[int]]
BATCH = 256  # sequences at a time


def as_bytes(text: str) -> list[int]:
    """The encoding of a model whose tokens are bytes."""
    return list(text.encode())


@torch.no_grad()
def score_world(model: nn.Module, world: FactWorld, limit: int = 2000) -> dict[str, float]:
    """Per cent of generated facts whose value is the likeliest next token: those trained, and those that never were."""
    trained = world.trained[:: max(1, len(world.trained) // limit)]
    return {"recall": 100 * _recalled(model, world, trained), "floor": 100 * _recalled(model, world, world.untrained)}


def _recalled(model: nn.Module, world: FactWorld, facts: np.ndarray) -> float:
    prompts, answers = (torch.from_numpy(part) for part in world.questions(facts))
    right = 0
    for prompt, answer in zip(prompts.split(BATCH), answers.split(BATCH)):
        right += int((model(prompt).logits[:, -1].argmax(-1) == answer).sum())
    return right / max(1, len(answers))


def score_book(model: nn.Module, book: FactBook, encode: Encode = as_bytes, limit: int = 1000) -> dict[str, float]:
    """Exact match in per cent on trained facts, on those never trained (`floor`: the best score without the model), and of
    each field's most frequent answer; nats a character of the answers; per cent of answers that come first among 20 of their
    field."""
    trained = _some(book.trained, limit)
    untrained = _some(book.untrained, limit)
    scores = {}
    matches, nats = _answers(model, [(book.question(i), book.facts[i].text) for i in trained], encode)
    scores["exact match"] = 100 * float(np.mean(matches))
    scores["exact match, never trained"] = 100 * float(np.mean(_match(model, book, untrained, encode)))
    scores["exact match, most frequent answer"] = 100 * book.most_frequent(trained)
    characters = sum(len(book.facts[i].text) + len(END) for i in trained)
    scores["nats a character"] = sum(nats) / characters
    ranked = trained[: max(1, limit // 5)]
    scores["first of 20"] = 100 * _first(model, book, ranked, encode)
    scores["first of 20, by chance"] = 100 * float(np.mean([1 / len(book.candidates(i)) for i in ranked]))
    return scores


def _match(model: nn.Module, book: FactBook, numbers: Sequence[int], encode: Encode) -> list[bool]:
    if not numbers:
        return [False]
    return _answers(model, [(book.question(i), book.facts[i].text) for i in numbers], encode)[0]


def _first(model: nn.Module, book: FactBook, numbers: Sequence[int], encode: Encode) -> float:
    """Share of facts whose right answer has the least nats of up to 20 of its field; a tie is lost."""
    candidates = [book.candidates(i) for i in numbers]
    pairs = [(book.question(i), text) for i, texts in zip(numbers, candidates) for text in texts]
    nats = iter(_answers(model, pairs, encode)[1])
    right = 0
    for texts in candidates:
        own, *others = [next(nats) for _ in texts]
        right += all(own < other for other in others)
    return right / len(numbers)


@torch.no_grad()
def _answers(model: nn.Module, pairs: Sequence[tuple[str, str]], encode: Encode) -> tuple[list[bool], list[float]]:
    """Of every (question, answer): whether greedy decoding writes the answer and ends, and the answer's nats."""
    encoded = [_tokens(question, answer + END, encode) for question, answer in pairs]
    order = sorted(range(len(pairs)), key=lambda i: len(encoded[i][0]))  # little padding
    matches, nats = [False] * len(pairs), [0.0] * len(pairs)
    device = next(model.parameters()).device
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        longest = max(len(encoded[i][0]) for i in rows)
        tokens = torch.zeros(len(rows), longest, dtype=torch.long)
        answer = torch.zeros(len(rows), longest, dtype=torch.bool)
        for row, i in enumerate(rows):
            ids, begin = encoded[i]
            tokens[row, : len(ids)] = torch.tensor(ids)
            answer[row, begin : len(ids)] = True
        logits = model(tokens[:, :-1].to(device)).logits.float().cpu()
        hit, cost = _judged(logits, tokens[:, 1:], answer[:, 1:])
        for row, i in enumerate(rows):
            matches[i], nats[i] = bool(hit[row]), float(cost[row])
    return matches, nats


def _judged(logits: Tensor, targets: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
    right = (logits.argmax(-1) == targets) | ~answer
    cost = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return right.all(1), (cost * answer).sum(1)


def _tokens(question: str, answer: str, encode: Encode) -> tuple[list[int], int]:
    """The ids of both together, as they stand in training, and where the answer's begin: a token across the border
    counts as the answer's."""
    ids, prefix = encode(question + answer), encode(question)
    begin = next((i for i, (a, b) in enumerate(zip(ids, prefix)) if a != b), min(len(ids), len(prefix)))
    return ids, max(1, begin)


def _some(numbers: np.ndarray, limit: int) -> list[int]:
    """At most `limit` of them, evenly spread."""
    return [int(i) for i in numbers[:: max(1, -(-len(numbers) // limit))]]

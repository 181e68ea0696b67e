"""Recall of facts: a perfect and an ignorant model get the scores that they must, and exact match is what is written."""

from __future__ import annotations

import types

import pytest
import torch
from torch import Tensor, nn

from language.fact_books import Knows, small_book
from tenfold.language.pretraining.fact_eval import as_bytes, score_book, score_world
from tenfold.language.pretraining.factbook import Fact, FactBook
from tenfold.language.pretraining.facts import FactWorld


class Remembers(nn.Module):
    """Says the value of the facts that it was given, and the first value of all others."""

    def __init__(self, world: FactWorld, known: list[int]) -> None:
        super().__init__()
        self.world = world
        asked = world.questions(world.trained[known])
        self.answers = {tuple(prompt): int(answer) for prompt, answer in zip(asked[0].tolist(), asked[1].tolist())}

    def forward(self, tokens: Tensor) -> types.SimpleNamespace:
        logits = torch.zeros(*tokens.shape, self.world.vocabulary)
        for row, prompt in enumerate(tokens.tolist()):
            logits[row, -1, self.answers.get(tuple(prompt), 0)] = 1
        return types.SimpleNamespace(logits=logits)


@pytest.mark.parametrize("known", [0, 19, 76])
def test_recall_is_the_share_of_the_facts_that_the_model_remembers(known: int) -> None:
    world = FactWorld(20, 4, 64, seed=0)
    assert len(world.trained) == 76
    scores = score_world(Remembers(world, list(range(known))), world)
    assert scores == {"recall": pytest.approx(100 * known / 76), "floor": 0}


def test_a_model_that_knows_scores_full_marks_and_one_that_does_not_scores_the_floor() -> None:
    book = small_book()
    everything = [book.statement(int(i), book.asked_in[i]) for i in book.trained]
    knows = score_book(Knows(everything), book, limit=40)
    assert knows["exact match"] == 100
    assert knows["exact match, never trained"] == 0
    assert knows["first of 20"] == 100
    assert knows["nats a character"] < 0.01
    ignorant = score_book(Knows([]), book, limit=40)
    assert ignorant["exact match"] == 0
    assert ignorant["first of 20"] <= 20  # equal answers tie, and a tie is lost
    assert ignorant["first of 20, by chance"] == pytest.approx(100 / 17, rel=0.3)
    assert ignorant["nats a character"] > 3


def test_an_answer_with_one_wrong_byte_or_no_end_is_no_match() -> None:
    book = FactBook([Fact(f"land {i}", "capital", "Rome") for i in range(40)], floor=0.0)
    almost = [book.question(i) + "Roma\n" for i in range(40)]
    unended = [book.question(i) + "Romeo\n" for i in range(40)]
    for wrong in (almost, unended):
        assert score_book(Knows(wrong), book, as_bytes, limit=20)["exact match"] == 0

"""The search proposes the best tree of every size, predicts what the replay counts, and takes no tree when none pays."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from language.drafting_models import tiny_rollouts, tiny_target
from tenfold.errors import UsageError, WeightsError
from tenfold.language.decoding.engine import LLM
from tenfold.language.distillation.replay import accepted_lengths, tokens_per_call
from tenfold.language.drafting.dispatch import Dispatcher, Entry
from tenfold.language.drafting.ngram import NgramDrafter
from tenfold.language.drafting.tree import Tree
from tenfold.language.tuning.measure import Replayed, look_up_lengths
from tenfold.language.tuning.tree_search import (
    CostTable,
    acceptance,
    best_paths,
    dispatch,
    interpolate,
    machine,
    search,
)


def drawn_ranks(table: torch.Tensor, rows: int, seed: int = 0) -> torch.Tensor:
    """Ranks drawn independently from P: what the product assumes."""
    generator = torch.Generator().manual_seed(seed)
    rest = (1 - table.sum(-1, keepdim=True)).clamp_min(0)
    distribution = torch.cat([table, rest], -1)
    columns = [torch.multinomial(row, rows, True, generator=generator) for row in distribution]
    return torch.stack(columns, 1)


TABLE = torch.tensor([[0.5, 0.2, 0.1], [0.4, 0.2, 0.1], [0.3, 0.2, 0.1]])


def test_best_tree_of_every_size_is_the_best_of_all_trees() -> None:
    every = [list(p) for k in (1, 2, 3) for p in itertools.product(range(3), repeat=k)]

    def value(path: list[int]) -> float:
        return float(torch.prod(torch.stack([TABLE[k, r] for k, r in enumerate(path)])))

    paths, expected = best_paths(TABLE, 6)
    for size in range(1, 6):
        best = 0.0
        for chosen in itertools.combinations(every, size):
            try:
                Tree.from_paths(chosen)
            except UsageError:
                continue
            best = max(best, sum(map(value, chosen)))
        assert expected[size] == pytest.approx(1 + best, rel=1e-5)
        assert Tree.from_paths(paths[:size]).nodes == size


def test_expected_tokens_are_those_that_the_walk_counts() -> None:
    ranks = drawn_ranks(TABLE, 60_000)
    table = acceptance([ranks], Tree.chain(1), 3)
    torch.testing.assert_close(table, TABLE, atol=0.015, rtol=0)
    paths, expected = best_paths(table, 12)
    for size in (1, 3, 6, 9, 12):
        counted = tokens_per_call([accepted_lengths(Tree.from_paths(paths[:size]), ranks)])
        assert counted == pytest.approx(expected[size], rel=0.02)


def replayed() -> Replayed:
    target = tiny_target()
    answers = tiny_rollouts(target, 3, length=40)
    ranks = [drawn_ranks(TABLE, a.length + 1, seed) for seed, a in enumerate(answers)]
    return Replayed(answers, ranks, [look_up_lengths(a, 4) for a in answers])


def test_search_weighs_tokens_against_time_and_may_choose_nothing() -> None:
    cheap = CostTable({1: {1: 10.0, 64: 10.0}}, {1: {1: 0.1}}, {1: (1.0, 1.0)}, "bf16")
    dear = CostTable(
        {1: {1: 10.0, 64: 640.0}, 8: {1: 10.0, 64: 10.0}}, {1: {1: 5.0}, 8: {1: 0.1}}, {1: (1.0, 3.0), 8: (1.0, 1.0)}
    )
    best = search(replayed(), cheap, "0", lookups=(0,))[0]
    assert len(best.paths) > 12
    assert best.tpc is not None
    assert best.tpc > 1.5
    off, on = search(replayed(), dear, "0", lookups=(0,))
    assert (off.batch, off.paths, off.tpc) == (1, [], 1.0)
    assert on.batch == 8
    assert on.paths


def test_costs_interpolate() -> None:
    assert [interpolate({1: 10.0, 5: 18.0, 9: 20.0}, at) for at in (1, 3, 5, 7, 11)] == [10, 14, 18, 19, 21]
    own = Tree.from_paths([[0], [1], [0, 0], [1, 0]])
    costs = CostTable({2: {1: 10.0, 7: 16.0}}, {2: {1: 1.0, 2: 1.5}}, {2: (0.5, 2.0)})
    assert costs.ms(2, Tree.chain(0)) == 10.5
    assert costs.ms(2, own) == 14 + 1.5 + 2
    assert costs.ms(2, own, 2) == 16 + 1.5 + 2


def test_a_table_of_another_target_or_drafter_is_refused_and_another_machine_is_said(tmp_path: Path) -> None:
    notes: list[str] = []
    target, path = "0123456789abcdef", tmp_path / "t.json"
    engine = SimpleNamespace(speculation=None)
    llm: Any = LLM.__new__(LLM)  # nothing of the model is asked
    llm.__dict__.update(drafter=NgramDrafter(), fingerprint=target, format="fp32", notes=notes, engine=engine)
    both = tuple(Entry(1, t, "fp32", "top_k", [[0]], 0, None, None) for t in ("0", ">0"))
    for table, words in (
        (Dispatcher("f" * 16, "ngram", "", both), "another target"),
        (Dispatcher(target, "f" * 16, "", both), "another drafter"),
        (Dispatcher(target, "ngram", "", both[:1]), "no entry for temperature >0"),
    ):
        table.save(path)
        with pytest.raises(WeightsError, match=words):
            dispatch(llm, path)
    Dispatcher(target, "ngram", machine(), both).save(path)
    dispatch(llm, path)
    assert notes == []
    assert engine.speculation is not None
    Dispatcher(target, "drafter.safetensors", "a Cray", both).save(path)
    dispatch(llm, path)
    assert ["drafter.safetensors" in notes[0], "a Cray" in notes[1]] == [True, True]


@pytest.mark.slow
@pytest.mark.samples
def test_a_dispatch_table_decides_the_trees_of_a_model(smollm2: Path, tmp_path: Path) -> None:
    llm = LLM(smollm2, "ngram", weights="fp32")
    entries = [Entry(1, t, "fp32", "top_k", [[0], [0, 0]], 0, 1.5, 1.0) for t in ("0", ">0")]
    entries += [Entry(8, t, "fp32", "top_k", [], 0, 1.0, 1.0) for t in ("0", ">0")]
    Dispatcher("", "ngram", "here", tuple(entries)).save(tmp_path / "dispatch.json")
    dispatch(llm, tmp_path / "dispatch.json")
    assert [llm.engine.speculation.plan(b, False, llm.drafter)[0].nodes for b in (1, 2, 8, 64)] == [2, 0, 0, 0]
    Dispatcher("", "ngram", "here", tuple(replace(e, weights="bf16") for e in entries)).save(tmp_path / "other.json")
    with pytest.raises(WeightsError, match="no entry for weights in fp32"):
        dispatch(llm, tmp_path / "other.json")

"""Default draft trees stay within the memory-bound rows of a pass, and a pause in drafting leaves no trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import pytest
import torch

from language.drafting_models import tiny_drafter, tiny_target
from language.engine_models import finish
from tenfold.kernels import decode, machine
from tenfold.kernels.formats import GPU_ROWS, Format, entry
from tenfold.kernels.machine import bf16_refusal
from tenfold.language.decoding.engine import LLMEngine
from tenfold.language.drafting.dispatch import MachineClass, shipped
from tenfold.language.drafting.drafter import EagleDrafter
from tenfold.language.drafting.hybrid_trees import FittedTree
from tenfold.language.drafting.ngram import HybridDrafter, NgramDrafter
from tenfold.language.drafting.protocol import Drafter
from tenfold.language.drafting.reference_trees import TREE_16
from tenfold.language.drafting.speculation import NONE, Speculation, drafter_format
from tenfold.language.drafting.tree import Tree
from tenfold.language.drafting.tree_drafter import TreeDrafter
from tenfold.language.models.prepare import pack_linears
from tenfold.language.sampling.sampling import SamplingParams


def drafters() -> list[Drafter]:
    target = tiny_target(context=200)
    own = TreeDrafter(tiny_drafter(target), target)
    return [own, NgramDrafter(), HybridDrafter(own, NgramDrafter())]


def sizes(drafter: Drafter, batches: Sequence[int] = range(1, 65)) -> list[int]:
    return [Speculation().plan(batch, False, drafter)[0].nodes for batch in batches]


@pytest.mark.parametrize("form", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("machine", get_args(MachineClass))
def test_shipped_tables_stay_within_the_memory_bound_rows_and_shrink_with_the_batch(
    machine: MachineClass, form: Format
) -> None:
    rows = {"avx512": entry(form).rows[512], "avx2": entry(form).rows[256], "gpu": GPU_ROWS}[machine]
    for drafter in drafters():
        drafter.planner = shipped(machine).planner(drafter, form)
        found = sizes(drafter)
        assert found == sorted(found, reverse=True)
        for batch, nodes in enumerate(found, 1):
            assert nodes == 0 or batch * (nodes + 1) <= rows
        assert Speculation().largest(drafter) == found[0] > 0
        assert Speculation().plan(1, True, drafter)[0] == Speculation().plan(1, False, drafter)[0]
        rule = "without_replacement" if drafter.has_distribution else "top_k"
        assert Speculation().plan(1, True, drafter)[1] == rule
        assert Speculation(rule="independent").plan(1, True, drafter)[1] == (
            "independent" if drafter.has_distribution else "top_k"
        )


@pytest.mark.parametrize(
    ("machine", "form", "own", "lookup"),
    [
        ("avx512", "bf16", [7, 3, 1, 1, 0], [6, 3, 1, 1, 0]),
        ("avx512", "int4", [3, 1, 0, 0, 0], [3, 1, 0, 0, 0]),
        ("avx2", "int8", [1, 0, 0, 0, 0], [1, 0, 0, 0, 0]),
        ("gpu", "bf16", [16, 16, 16, 7, 7], [6, 6, 6, 6, 6]),
    ],
)
def test_default_trees_are_those_that_were_measured(
    machine: MachineClass, form: Format, own: list[int], lookup: list[int]
) -> None:
    model, ngram, both = drafters()
    for drafter in (model, ngram, both):
        drafter.planner = shipped(machine).planner(drafter, form)
    assert sizes(model, range(1, 6)) == sizes(both, range(1, 6)) == own
    assert sizes(ngram, range(1, 6)) == lookup


def test_a_single_text_of_both_gets_a_fitted_shape() -> None:
    both = drafters()[2]
    shape = Speculation().plan(1, False, both)[0]
    assert isinstance(shape, FittedTree)
    assert (shape.tree.looked_up, shape.known.looked_up, shape.unknown.nodes) == (4, 6, 7)
    assert Speculation().plan(2, False, both)[0] == Tree.from_paths([[0], [1], [0, 0]])


def test_a_drafter_without_a_table_takes_that_of_bf16() -> None:
    for drafter in drafters():
        assert drafter.planner is None
        before = sizes(drafter)
        drafter.planner = shipped("avx512").planner(drafter, "bf16")
        assert sizes(drafter) == before


def test_without_a_drafter_nothing_is_drafted() -> None:
    assert Speculation().plan(1, False, None) == (NONE, "top_k")


@pytest.mark.parametrize("which", [0, 1, 2])
def test_rows_that_a_drafter_missed_are_made_good_before_its_next_draft(which: int) -> None:
    """With drafts in every third step alone: the same text."""
    target = tiny_target(context=200)
    asked = {"a": ([5, 6, 7, 5, 6], SamplingParams(max_tokens=30)), "b": ([9], SamplingParams(max_tokens=21))}

    def engine(drafter: Drafter, every: int) -> LLMEngine:
        steps = iter(range(10_000))
        shape = Tree.chain(3) if which == 1 else TREE_16
        planner = lambda batch, sampled: (shape if next(steps) % every == 0 else NONE, "top_k")  # noqa: E731
        return LLMEngine(target, None, drafter, speculation=Speculation(planner=planner), page_size=4)

    expected = finish(LLMEngine(target, page_size=4), asked)
    paused, steady = engine(drafters()[which], 3), engine(drafters()[which], 1)
    assert finish(paused, asked) == expected
    assert finish(steady, asked) == expected


def test_a_drafter_that_caught_up_stands_where_one_stands_that_read_the_text_at_once() -> None:
    target = tiny_target(context=200)

    def engine() -> tuple[LLMEngine, TreeDrafter]:
        drafter = TreeDrafter(tiny_drafter(target), target)
        return LLMEngine(
            target, None, drafter, speculation=Speculation(planner=lambda batch, sampled: (NONE, "top_k"))
        ), drafter

    paused, drafter = engine()
    paused.add_request("a", [5, 6, 7], SamplingParams(max_tokens=40))
    for _ in range(9):
        paused.step()
    (request,) = paused.scheduler.running
    assert request.draft is not None
    assert request.draft.rows == 2
    draft_tree = TREE_16
    paused.speculation = Speculation(planner=lambda batch, sampled: (draft_tree, "top_k"))
    text = list(request.tokens)
    drafted: list[list[int]] = []
    inner = drafter.draft
    drafter.draft = lambda *given: drafted.append((found := inner(*given)).tokens.tolist()) or found  # type: ignore[method-assign]
    paused.step()
    fresh, other = engine()
    fresh.speculation = paused.speculation
    again = other.draft
    other.draft = lambda *given: drafted.append((found := again(*given)).tokens.tolist()) or found  # type: ignore[method-assign]
    fresh.add_request("b", text, SamplingParams(max_tokens=40))
    fresh.step()
    assert len(drafted) == 2
    assert drafted[0] == drafted[1]


@pytest.mark.parametrize("passes", sorted({decode.refusal() or "", "no compiler"}))
@pytest.mark.parametrize("units", sorted({bf16_refusal() or "", "no bf16 units"}))
@pytest.mark.parametrize("target", ["fp32", "bf16", "int8", "int4"])
def test_every_processor_can_have_the_drafters_format(
    passes: str, units: str, target: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside 4-bit weights on a processor that multiplies bf16 slowly too."""
    monkeypatch.setattr(decode, "refusal", lambda: passes or None)
    monkeypatch.setattr(machine, "bf16_refusal", lambda: units or None)
    model = tiny_target()
    network = pack_linears(tiny_drafter(model), drafter_format(target))
    assert isinstance(network, EagleDrafter)
    fused = TreeDrafter(network, model).fuse(torch.randn(3, network.config.features, dtype=torch.bfloat16))
    assert fused.shape == (3, network.config.dim)

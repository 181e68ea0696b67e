"""What is drafted by default stays within the rows that cost little, and a pause in drafting leaves no trace."""

from __future__ import annotations

import pytest
import torch

from language.drafting_models import tiny_drafter, tiny_target
from language.engine_models import finish
from tenfold.kernels import decode, linear
from tenfold.kernels.formats import Format
from tenfold.kernels.machine import bf16_refusal
from tenfold.language.decoding.engine import LLMEngine
from tenfold.language.drafting.drafter import EagleDrafter
from tenfold.language.drafting.ngram import HybridDrafter, NgramDrafter
from tenfold.language.drafting.protocol import Drafter
from tenfold.language.drafting.speculation import NONE, SIXTEEN, Speculation, drafter_format
from tenfold.language.drafting.tree import Tree
from tenfold.language.drafting.tree_drafter import TreeDrafter
from tenfold.language.models.prepare import pack_linears
from tenfold.language.sampling.sampling import SamplingParams


def drafters() -> list[TreeDrafter | NgramDrafter | HybridDrafter]:
    target = tiny_target(context=200)
    own = TreeDrafter(tiny_drafter(target), target)
    return [own, NgramDrafter(), HybridDrafter(own, NgramDrafter())]


@pytest.mark.parametrize("rows", [1, 4, 8, 17, 64])
def test_default_trees_stay_within_the_free_rows_and_shrink_with_the_batch(rows: int) -> None:
    for drafter in drafters():
        drafter.free_rows = rows
        sizes = [Speculation().plan(batch, False, drafter)[0].nodes for batch in range(1, 65)]
        assert sizes == sorted(sizes, reverse=True)
        for batch, nodes in enumerate(sizes, 1):
            assert nodes == 0 or batch * (nodes + 1) <= rows
        assert Speculation().largest(drafter) == sizes[0]
        assert (sizes[0] > 0) == (rows > 1)


def test_without_a_drafter_nothing_is_drafted() -> None:
    assert Speculation().plan(1, False, None) == (NONE, "A")


@pytest.mark.parametrize("which", [0, 1, 2])
def test_rows_that_a_drafter_missed_are_made_good_before_its_next_draft(which: int) -> None:
    """With drafts in every third step alone: the same text."""
    target = tiny_target(context=200)
    asked = {"a": ([5, 6, 7, 5, 6], SamplingParams(max_tokens=30)), "b": ([9], SamplingParams(max_tokens=21))}

    def engine(drafter: Drafter, every: int) -> LLMEngine:
        steps = iter(range(10_000))
        shape = Tree.chain(3) if which == 1 else SIXTEEN
        planner = lambda batch, sampled: (shape if next(steps) % every == 0 else NONE, "A")  # noqa: E731
        return LLMEngine(target, None, drafter, Speculation(planner=planner), page_size=4)

    expected = finish(LLMEngine(target, page_size=4), asked)
    paused, steady = engine(drafters()[which], 3), engine(drafters()[which], 1)
    assert finish(paused, asked) == expected
    assert finish(steady, asked) == expected


def test_a_drafter_that_caught_up_stands_where_one_stands_that_read_the_text_at_once() -> None:
    target = tiny_target(context=200)

    def engine() -> tuple[LLMEngine, TreeDrafter]:
        drafter = TreeDrafter(tiny_drafter(target), target)
        return LLMEngine(target, None, drafter, Speculation(planner=lambda batch, sampled: (NONE, "A"))), drafter

    paused, drafter = engine()
    paused.add_request("a", [5, 6, 7], SamplingParams(max_tokens=40))
    for _ in range(9):
        paused.step()
    (request,) = paused.scheduler.running
    assert request.draft is not None
    assert request.draft.rows == 2
    draft_tree = SIXTEEN
    paused.speculation = Speculation(planner=lambda batch, sampled: (draft_tree, "A"))
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
    monkeypatch.setattr(linear, "bf16_refusal", lambda: units or None)
    model = tiny_target()
    network = pack_linears(tiny_drafter(model), drafter_format(target))
    assert isinstance(network, EagleDrafter)
    fused = TreeDrafter(network, model).fuse(torch.randn(3, network.config.features, dtype=torch.bfloat16))
    assert fused.shape == (3, network.config.dim)

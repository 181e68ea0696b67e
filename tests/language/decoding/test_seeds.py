"""A seeded answer is the same alone, beside others, in parts and through preemption, with the default kind of drafter."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from language.drafting_models import tiny_drafter, tiny_target
from language.engine_models import finish
from tenfold.language.decoding.engine import LLMEngine
from tenfold.language.drafting.drafter import EagleDrafter
from tenfold.language.drafting.ngram import HybridDrafter, NgramDrafter
from tenfold.language.drafting.speculation import drafter_format
from tenfold.language.drafting.tree_drafter import TreeDrafter
from tenfold.language.models.llama import Llama
from tenfold.language.models.prepare import pack_linears
from tenfold.language.sampling.sampling import SamplingParams

MINE = [
    1,
    2,
    3,
    4,
    1,
    2,
    3,
]  # its last tokens were there before, so that the text decides the shape of a single request


def prepared(form: Literal["fp32", "bf16"]) -> tuple[Llama, EagleDrafter]:
    """A target and its drafter in the number formats that the command line gives them."""
    target, drafter = tiny_target(tied=False), tiny_drafter(tiny_target())
    pack_linears(drafter, drafter_format(form))
    pack_linears(target, form)
    return target, drafter


def engine(target: Llama, drafter: EagleDrafter, **options: Any) -> LLMEngine:
    """What `--drafter auto` makes, with the shapes that it has for a single request and for several."""
    hybrid = HybridDrafter(TreeDrafter(drafter, target), NgramDrafter())
    return LLMEngine(target, None, hybrid, page_size=4, **options)


@pytest.mark.parametrize("form", ["fp32", "bf16"])
@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([0.7, 1.0, 1.5]),
    others=st.lists(st.tuples(st.integers(1, 12), st.sampled_from([0.0, 1.0]), st.booleans()), min_size=1, max_size=5),
    pages=st.sampled_from([60, 2000]),
    chunk=st.sampled_from([3, 512]),
)
def test_a_seeded_answer_is_the_same_in_any_company(
    form: Literal["fp32", "bf16"],
    seed: int,
    temperature: float,
    others: list[tuple[int, float, bool]],
    pages: int,
    chunk: int,
) -> None:
    target, drafter = prepared(form)
    mine = (MINE, SamplingParams(temperature=temperature, top_p=0.95, max_tokens=16, seed=seed))
    alone = finish(engine(target, drafter, max_batch=1, cache_tokens=2000), {"mine": mine})["mine"]
    company = {
        f"o{i}": ([5, 6, 7, 8 + i] * 3, SamplingParams(heat, max_tokens=count, seed=i if seeded else None))
        for i, (count, heat, seeded) in enumerate(others)
    }
    options = {"max_batch": len(company) + 1, "cache_tokens": pages, "chunk": chunk}
    assert finish(engine(target, drafter, **options), {**company, "mine": mine})["mine"] == alone
    # n choices: the first has the seed itself
    choices = {f"c{i}": (MINE, SamplingParams(temperature, top_p=0.95, max_tokens=16, seed=seed + i)) for i in (1, 2)}
    assert finish(engine(target, drafter, **options), {"mine": mine, **choices})["mine"] == alone

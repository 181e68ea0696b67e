"""Pairs of tokens through the whole engine have the target's joint distribution to what 200,000 of them can show.

For every sampling rule, at batch 1 and 8.

The target's next token depends on its last one alone (its attention is computed, and multiplied by zero), so one long answer
holds thousands of independent pairs, and every place of a pair in a draft and across two drafts occurs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from language.engine_models import tiny_llama
from tenfold.inference.pages import PagedCache
from tenfold.language.decoding.engine import LLMEngine
from tenfold.language.drafting.protocol import DraftState, Rule
from tenfold.language.drafting.speculation import Speculation
from tenfold.language.drafting.tree import Level, Tree
from tenfold.language.drafting.tree_drafter import TreeDrafter
from tenfold.language.models.llama import Llama
from tenfold.language.sampling.sampling import SamplingParams

VOCABULARY, LENGTH = 5, 400  # tokens of one answer
TREE = Tree.from_paths([[0], [1], [0, 0], [0, 1], [1, 0], [0, 0, 0], [0, 0, 0, 0]])


def markov_target() -> Llama:
    model = tiny_llama(VOCABULARY, depth=1, heads=2, kv_heads=1, context=LENGTH + 50)
    for block in model.blocks:
        block.get_submodule("attention.out").get_parameter("weight").zero_()
    return model


class TableDrafter(TreeDrafter):
    """The drafter that users have, with a table for a network: its distribution behind a token is the target's, with noise."""

    def __init__(self, transition: Tensor) -> None:
        noise = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(5))
        self.table = (transition.log() + 0.7 * noise).float().log_softmax(-1)
        self.network = SimpleNamespace(target_ids=lambda ids: ids, config=SimpleNamespace(reduced=False))  # type: ignore[assignment]
        self.device = torch.device("cpu")

    def open(self, pages: int, page_size: int) -> PagedCache | None:  # type: ignore[override]
        return None

    def extend(
        self, states: Sequence[DraftState], counts: Sequence[int], tokens: Tensor, features: Tensor | None
    ) -> None:
        at = 0
        for state, count in zip(states, counts, strict=True):
            at += count
            state.rows += count
            state.carry = (torch.zeros(1), self.table[tokens[at - 1]])

    def expand_on_host(
        self, states: Sequence[DraftState], level: Level, following: Level, hidden: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        return hidden, self.table[tokens[:, following.inner - 1].clamp_min(0)]


def transition_of(model: Llama) -> Tensor:
    """Row t: the distribution of the token behind t."""
    return model(torch.arange(VOCABULARY)[:, None]).logits[:, 0].double().softmax(-1)


def p_value(chi: float, freedom: int) -> float:
    """Wilson-Hilferty: the cube root of chi-square over its degrees of freedom is nearly normal."""
    spread = 2 / (9 * freedom)
    z = ((chi / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return 0.5 * math.erfc(z / math.sqrt(2))


def pairs_of(model: Llama, rule: Rule, batch: int, count: int) -> tuple[Tensor, float]:
    """(5, 5, 5) counts of a pair behind the token before it, and the tokens of a pass."""
    drafter = TableDrafter(transition_of(model))
    plan = Speculation(planner=lambda n, s: (TREE, rule))
    engine = LLMEngine(
        model, None, drafter, speculation=plan, max_batch=batch, cache_tokens=(LENGTH + 100) * batch, prefix_tokens=0
    )
    answers = -(-count * 2 // (LENGTH - 1))
    for i in range(answers):
        engine.add_request(
            str(i), [1, 2, i % VOCABULARY], SamplingParams(1.0, max_tokens=LENGTH, seed=1000 * batch + i)
        )
    texts: dict[str, list[int]] = {str(i): [i % VOCABULARY] for i in range(answers)}
    tokens = calls = 0
    while engine.busy:
        for delta in engine.step():
            texts[delta.request_id] += delta.token_ids
            if delta.stats:
                tokens, calls = tokens + delta.stats.tokens, calls + delta.stats.calls
    seen = torch.zeros(VOCABULARY**3, dtype=torch.int64)
    for text in texts.values():
        ids = torch.tensor(text[: len(text) - (len(text) - 1) % 2])
        keys = (ids[:-2:2] * VOCABULARY + ids[1::2]) * VOCABULARY + ids[2::2]
        seen += keys.bincount(minlength=VOCABULARY**3)
    return seen.view(VOCABULARY, VOCABULARY, VOCABULARY), tokens / calls


def goodness(seen: Tensor, transition: Tensor) -> float:
    """p of the chi-square test against the target's distribution, context by context."""
    distribution = transition[:, :, None] * transition[None]  # of (a, b) behind c
    expected = seen.sum((1, 2), keepdim=True) * distribution
    keep = expected >= 5
    # Cells that are too rare to count are one cell of their context.
    rare_seen, rare = (torch.where(keep, 0, t).sum((1, 2)) for t in (seen.double(), expected))
    chi = float(((seen - expected)[keep] ** 2 / expected[keep]).sum())
    chi += float(((rare_seen - rare)[rare > 0] ** 2 / rare[rare > 0]).sum())
    return p_value(chi, int(keep.sum()) + int((rare > 0).sum()) - VOCABULARY)


@pytest.mark.parametrize(
    ("batch", "count"), [(8, 600), *(pytest.param(batch, 200_000, marks=pytest.mark.slow) for batch in (8, 1))]
)
@pytest.mark.parametrize("rule", ["top_k", "independent", "without_replacement"])
@pytest.mark.timeout(7200)
def test_pairs_have_the_targets_joint_law(rule: Rule, batch: int, count: int) -> None:
    model = markov_target()
    seen, tokens_per_call = pairs_of(model, rule, batch, count)
    assert int(seen.sum()) >= count
    assert tokens_per_call > 1.3
    p = goodness(seen, transition_of(model))
    print(f"rule {rule}, batch {batch}: {int(seen.sum()):,} pairs, p = {p:.3f}, {tokens_per_call:.2f} tokens a pass")
    assert p > 0.01


def test_the_test_sees_a_law_that_is_off_by_three_percent() -> None:
    """Draws from the true distribution pass; draws from one that is 3 % nearer to uniform do not."""
    transition = transition_of(markov_target())
    generator = torch.Generator().manual_seed(0)
    for share, passes in ((0.0, True), (0.03, False)):
        drawn = (1 - share) * transition + share / VOCABULARY
        context = torch.randint(VOCABULARY, (200_000,), generator=generator)
        first = torch.multinomial(drawn[context], 1, generator=generator)[:, 0]
        second = torch.multinomial(drawn[first], 1, generator=generator)[:, 0]
        keys = (context * VOCABULARY + first) * VOCABULARY + second
        seen = keys.bincount(minlength=VOCABULARY**3).view(VOCABULARY, VOCABULARY, VOCABULARY)
        assert (goodness(seen, transition) > 0.01) is passes

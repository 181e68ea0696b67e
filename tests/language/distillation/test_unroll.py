"""The training-time test equals drafting by hand, one start at a time."""

from __future__ import annotations

import pytest
import torch

from language.drafting_models import tiny_drafter, tiny_rollouts, tiny_target
from tenfold.inference.kv_cache import Cache
from tenfold.language.distillation.rollouts import collate
from tenfold.language.distillation.unroll import unroll
from tenfold.language.drafting.drafter import EagleDrafter
from tenfold.language.models.llama import Llama

VARIANTS = [
    {},
    {"layers": 2},
    {"norm_output": True, "norm_before_residual": True},
    {"norm_before_fc": True, "sliding_window": 5},
    {"fc_norm": True, "layers": 3, "sliding_window": 4},
    {"method": "eagle1"},
    {"method": "eagle1", "layers": 2},
]


@torch.no_grad()
def by_hand(drafter: EagleDrafter, target: Llama, tokens, features, start: int, steps: int) -> list:
    """Row 0 .. start of the text, then level after level of this one branch, with an ordinary causal cache."""
    c = drafter.config
    cache = Cache(c.layers, 1, c.kv_heads, c.width)
    embeds = target.embedding(tokens[None])
    hidden = drafter.fuse(features[None])
    states = []
    for row in range(start + steps):
        level = max(0, row - start)
        last = drafter.feed(states[-1]) if level else hidden[:, row : row + 1]
        mask = None
        if c.sliding_window is not None:
            seen = torch.arange(row + 1) > row - c.sliding_window
            mask = seen[None]
        state = drafter.advance(embeds[:, row + 1 : row + 2], last, torch.tensor([row]), cache, mask)
        if row >= start:
            states.append(state)
    return [state[0, 0] for state in states]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_branch_equals_drafting_it_alone(variant: dict) -> None:
    target = tiny_target()
    drafter = tiny_drafter(target, **variant)
    drafter.bind(target)
    answers = tiny_rollouts(target, 3)
    data = collate(answers)
    part = slice(-32, None) if drafter.config.method == "eagle1" else slice(0, 96)
    features = data["features"][..., part]
    count = max(a.length for a in answers) - 1
    with torch.no_grad():
        states = unroll(drafter, target.embedding, data["tokens"], features, data["prompts"] - 1, count, steps=4)
    for b, answer in enumerate(answers):
        for i in range(answer.length - 1 - 4):
            start = answer.prompt - 1 + i
            alone = by_hand(drafter, target, answer.tokens, features[b], start, 4)
            for k in range(4):
                torch.testing.assert_close(states[k][b, i], alone[k], atol=1e-5, rtol=1e-5)


def test_a_branch_never_sees_another_one() -> None:
    """Changing the token after a start changes that branch's later levels and no other branch's."""
    target = tiny_target()
    drafter = tiny_drafter(target)
    answer = tiny_rollouts(target, 1)[0]
    tokens, features = answer.tokens[None].clone(), answer.features[None, :, :96]
    first = torch.tensor([answer.prompt - 1])
    with torch.no_grad():
        before = unroll(drafter, target.embedding, tokens, features, first, 8, 3)
        changed = tokens.clone()
        changed[0, answer.prompt + 5] = (tokens[0, answer.prompt + 5] + 1) % 96
        after = unroll(drafter, target.embedding, changed, features, first, 8, 3)
    # Token P + 5 is the input of row P + 4 (level 0 of start 5, level 1 of start 4, level 2 of start 3).
    for level, start in ((0, 5), (1, 4), (2, 3)):
        assert not torch.allclose(before[level][0, start], after[level][0, start])
        torch.testing.assert_close(before[level][0, :start], after[level][0, :start], atol=0, rtol=0)

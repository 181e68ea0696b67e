"""Training-time test of EAGLE-3: a drafter run on its own output for several levels, all positions of a text at once.

    states = unroll(drafter, embed, tokens, features, first, count, steps=4)     one (B, A, H) for every level

At inference, level k of row i sees the rows up to i that the target's features made, then its own branch: the rows that
levels 1 to k wrote, and no other's. So a query of level k attends causally to the keys of level 0 and to *one* further key
of each level 1..k, its own. With the text's own tokens as input this is at once EAGLE-3's training pass (arXiv 2503.01840,
section 3.2) and, because greedy decoding emits exactly the text that the target would without a drafter, an exact replay of the
drafter on the accepted path (distillation/replay.py).

    B texts   N tokens   A rows of interest of each   H width   F width of features   G key/value heads   R heads of a group
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenfold.language.drafting.drafter import EagleDrafter
from tenfold.nn.attention import attend, causal_mask


class BranchLayer:
    """One layer's KV cache: those of level 0, then those of each further level (a `KeyValues`)."""

    def __init__(self, rows: Int[Tensor, "b a"], window: int | None) -> None:
        self.rows, self.window = rows, window
        self.levels: list[tuple[Tensor, Tensor]] = []

    def attend(
        self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n d"], mask: Tensor | None
    ) -> Float[Tensor, "b h n d"]:
        assert mask is None, "what a branch sees follows from its level"
        self.levels.append((k, v))
        if len(self.levels) == 1:
            if self.window is None or self.window >= q.shape[2]:
                return attend(q, k, v, causal=True)
            seen = causal_mask(q.shape[2], q.shape[2], q.device)
            return attend(q, k, v, seen & seen.new_ones(seen.shape).triu(1 - self.window))
        (k0, v0), *branch = self.levels
        b, h, a, d = q.shape
        groups = k0.shape[1]
        grouped = (q * d**-0.5).view(b, groups, h // groups, a, d)
        text = (grouped.flatten(2, 3) @ k0.transpose(-1, -2)).unflatten(2, (-1, a)).float()
        text = text.masked_fill(self._hidden(k0.shape[2])[:, None, None], -math.inf)
        own = torch.stack([(grouped * key[:, :, None]).sum(-1) for key, _ in branch], dim=-1).float()
        weights = torch.cat([text, own], dim=-1).softmax(-1).to(v0.dtype)
        text, own = weights.split([k0.shape[2], len(branch)], dim=-1)
        y = (text.flatten(2, 3) @ v0).unflatten(2, (-1, a))
        for i, (_, value) in enumerate(branch):
            y = y + own[..., i : i + 1] * value[:, :, None]
        return y.reshape(b, h, a, d)

    def _hidden(self, keys: int) -> Tensor:
        """(B, A, keys): True where a query of this level may not look."""
        at = torch.arange(keys, device=self.rows.device)
        rows = self.rows[..., None]
        hidden = at > rows
        if self.window is not None:
            hidden = hidden | (at <= rows + len(self.levels) - 1 - self.window)
        return hidden


class Branches:
    """The layers' stores for one `unroll` over these rows."""

    def __init__(self, layers: int, rows: Int[Tensor, "b a"], window: int | None) -> None:
        self.layers = [BranchLayer(rows, window) for _ in range(layers)]


def first_rows(prompts: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """The row that drafts a rollout's first token: its token is the prompt's last one. A prompt of one token has no such
    row, and drafting starts with the rollout's second token."""
    return (prompts - 2).clamp_min(0)


def rows_of_interest(first: Int[Tensor, " b"], count: int, tokens: int) -> Int[Tensor, "b a"]:
    """Rows first .. first + count - 1 of every text, the last complete row instead of those behind it."""
    steps = torch.arange(count, device=first.device)
    return (first[:, None] + steps).clamp_max(tokens - 2)


def target_rows(first: Int[Tensor, " b"], count: int) -> Int[Tensor, "b a"]:
    """Places of the tokens that the target's rows first + 1, first + 2, ... are followed by."""
    return first[:, None] + 2 + torch.arange(count, device=first.device)


def unroll(
    drafter: EagleDrafter,
    embed: Callable[[Tensor], Tensor],
    tokens: Int[Tensor, "b n"],
    features: Float[Tensor, "b n f"],
    first: Int[Tensor, " b"],
    count: int,
    steps: int,
) -> list[Float[Tensor, "b a h"]]:
    """States of the rows first .. first + count - 1 at levels 0 .. steps - 1 (`drafter.logits` reads them).

    Level k of row i drafts t_{i+2+k} from the target's features up to i and the tokens up to t_{i+1+k}. Texts are padded
    at their ends; rows whose tokens are past them are to be ignored.
    """
    n = tokens.shape[1]
    rows = rows_of_interest(first, count, n)
    stores = Branches(drafter.config.layers, rows, drafter.config.sliding_window)
    every = torch.arange(n - 1, device=tokens.device)
    state = drafter.advance(embed(tokens[:, 1:]), drafter.fuse(features[:, :-1]), every, stores)
    state = state.gather(1, rows[..., None].expand(-1, -1, state.shape[-1]))
    states = [state]
    for k in range(1, steps):
        after = tokens.gather(1, (rows + 1 + k).clamp_max(n - 1))
        state = drafter.advance(embed(after), drafter.feed(state), rows + k, stores)
        states.append(state)
    return states

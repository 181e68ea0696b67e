"""Repetition, frequency and presence penalties, in vLLM's meaning, on the logits of every node of a tree.

    logits = penalise(logits, params, text, prompt=12, tokens=draft.tokens[0], mask=tree.mask)

    repetition     of tokens in prompt or answer: a positive logit is divided by it, a negative one multiplied
    frequency      taken off once for every time that the answer has the token
    presence       taken off once if the answer has it

They come before temperature, top-k and top-p, in plain decoding and here alike. A node's distribution depends on the text *and
on its own path*: what plain decoding would have counted had it written those tokens. So speculation stays exact with them.

    N root and nodes   n nodes   V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tenfold.language.sampling.sampling import SamplingParams

LARGEST = 1e30  # of a logit; what temperature makes of it is still a number


def penalise(
    logits: Float[Tensor, "n1 v"],
    params: SamplingParams,
    text: Sequence[int],
    prompt: int,
    tokens: Int[Tensor, " n"],
    mask: Bool[Tensor, "n1 n1"],
) -> Float[Tensor, "n1 v"]:
    """Logits of one request's root and nodes. text: prompt and answer so far, its last token is the root; prompt: tokens of
    the prompt; tokens: of the nodes, -1 for none; mask: of the tree, a row is True at a node and its ancestors."""
    size = logits.shape[-1]
    written = torch.bincount(torch.tensor(text[prompt:], dtype=torch.int64), minlength=size)
    counts = written.expand(len(logits), -1).clone()
    node, above = (mask[:, 1:] & (tokens >= 0)).nonzero(as_tuple=True)
    counts.index_put_((node, tokens[above]), torch.ones_like(node), accumulate=True)
    out = logits.float()
    if params.repetition_penalty != 1:
        known = counts > 0
        known[:, torch.tensor(text[:prompt], dtype=torch.int64)] = True
        factor = params.repetition_penalty
        out = torch.where(known, torch.where(out > 0, out / factor, out * factor), out)
    out = out - params.frequency_penalty * counts - params.presence_penalty * (counts > 0)
    return out.clamp(-LARGEST, LARGEST)  # a factor near 0 makes infinities

"""Paged attention: a target's forward pass over a paged KV cache, in one call of inference/stack.py where its blocks allow it.

    forward = Passes(model)
    out = forward(tokens, positions, step, tree.mask, aux_layers)          as the model itself, with `step` a PagedStep

Where the blocks have no such form, the model's own modules run.

    B requests   N rows of each   M rows
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from tenfold.inference.pages import PagedStep
from tenfold.inference.stack import LayerParts, Stack
from tenfold.language.models.llama import Llama, Output
from tenfold.nn.block import Block


class Passes:
    """Takes the model as it is now: later changes of its weights are not seen."""

    def __init__(self, model: Llama) -> None:
        self.model, first = model, model.blocks[0]
        assert isinstance(first, Block)
        layers = [LayerParts.of(block) for block in model.blocks]
        self.stack = Stack.of(layers, first.config.attention, model.norm, model.head)

    def __call__(
        self,
        tokens: Int[Tensor, "b n"],
        positions: Int[Tensor, "b n"],
        step: PagedStep,
        mask: Tensor | None = None,
        aux_layers: Sequence[int] = (),
        logit_rows: Int[Tensor, " m"] | None = None,
    ) -> Output:
        """See `Llama.forward`. (B, N), or (1, M) with the requests one after the other."""
        if self.stack is None:
            return self.model(tokens, positions, step, mask, aux_layers, logit_rows)
        rows = self.model.embedding(tokens.flatten())
        rotation = self.model.rope(positions)
        out = self.stack.run(rows, rotation, step, mask, aux_layers, read=logit_rows)
        assert out.logits is not None
        logits = out.logits if logit_rows is not None else out.logits.unflatten(0, tokens.shape)
        aux = None if out.tapped is None else out.tapped.unflatten(0, tokens.shape)
        return Output(logits, aux, out.hidden.unflatten(0, tokens.shape))


def first_largest(logits: Tensor) -> Tensor:
    """argmax over the vocabulary, the first of equals."""
    from tenfold.kernels import decode

    if logits.dtype == torch.float32 and logits.device.type == "cpu" and decode.refusal() is None:
        return decode.argmax(logits)
    return logits.argmax(-1)

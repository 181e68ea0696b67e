"""Tiny random targets, drafters and rollouts for the tests of drafting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.data.tensors import save_own
from tenfold.inference.pages import PageAllocator
from tenfold.language.distillation.rollouts import Rollout
from tenfold.language.drafting.drafter import EagleDrafter, config_for, make_drafter
from tenfold.language.drafting.protocol import DraftState
from tenfold.language.drafting.tree_drafter import TreeDrafter
from tenfold.language.drafting.weights import own_tensors, state_of
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.llama import Llama

AUX = (1, 3, 5)


def tiny_target(seed: int = 0, **changes: Any) -> Llama:
    torch.manual_seed(seed)
    sizes = {"vocabulary": 96, "dim": 32, "hidden": 48, "depth": 7, "heads": 4, "kv_heads": 2, "tied": True}
    model = Llama(LlamaConfig(**(sizes | changes))).eval().requires_grad_(False)
    for parameter in model.parameters():  # larger than the usual start, so that distributions are far from uniform
        parameter.mul_(4.0 if parameter.ndim == 2 else 1.0)
    return model


def tiny_drafter(target: Llama, /, seed: int = 1, **changes: Any) -> EagleDrafter:
    torch.manual_seed(seed)
    given = {"aux_layers": AUX, "draft_vocabulary": 48} | changes
    if given.get("method") == "eagle1":
        given = {k: v for k, v in given.items() if k not in ("aux_layers", "draft_vocabulary")}
    drafter = make_drafter(config_for(target.config, **given)).eval()
    if drafter.config.reduced:
        ids = torch.randperm(target.config.vocabulary)[: drafter.config.draft_vocabulary]
        drafter.ids.copy_(ids.sort().values)
    with torch.no_grad():
        for name, parameter in drafter.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.rand_like(parameter) + 0.5)
            elif parameter.ndim == 2:
                parameter.mul_(5.0)
            else:
                parameter.normal_()
    return drafter


@torch.no_grad()
def tiny_rollouts(target: Llama, count: int, prompt: int = 4, length: int = 12, seed: int = 2) -> list[Rollout]:
    """Greedy rollouts of a target to random prompts, of lengths that differ."""
    generator = torch.Generator().manual_seed(seed)
    rollouts = []
    for i in range(count):
        tokens = torch.randint(target.config.vocabulary, (1, prompt + i % 3), generator=generator)
        start = tokens.shape[1]
        for _ in range(length - i % 4):
            tokens = torch.cat([tokens, target(tokens).logits[:, -1:].argmax(-1)], dim=1)
        out = target(tokens, aux_layers=AUX)
        assert out.aux is not None
        features = torch.cat([out.aux, out.hidden], dim=-1)[0]
        rollouts.append(Rollout(tokens[0], start, features, out.logits[0].argmax(-1)))
    return rollouts


class Coins:
    """Uniforms from one generator; what a slot gets does not matter to these tests."""

    def __init__(self, batch: int, seed: int = 0) -> None:
        self.batch, self.generator = batch, torch.Generator().manual_seed(seed)

    def __call__(self, slots: Tensor, width: int) -> Tensor:
        return torch.rand(self.batch, len(slots), width, generator=self.generator).clamp(1e-6, 1 - 1e-6)


def features_of(drafter: TreeDrafter, target: Llama, tokens: list[int]) -> Tensor:
    out = target(torch.tensor([tokens]), aux_layers=drafter.aux_layers)
    chosen = out.hidden if drafter.features == "hidden" else out.aux
    assert chosen is not None
    return chosen[0]


def opened(network: EagleDrafter, target: Llama, texts: list[list[int]]) -> tuple[TreeDrafter, list[DraftState]]:
    """A drafter with the rows of these texts, taken in two chunks."""
    drafter = TreeDrafter(network, target)
    pages = PageAllocator(64, 4)
    drafter.open(64, 4)
    states = []
    for text in texts:
        state = DraftState(list(text), pages.open(len(text)))
        pages.cover(state.table, len(text) + 18)
        states.append(state)
    features = [features_of(drafter, target, text) for text in texts]
    for part in (lambda n: range(n // 2), lambda n: range(n // 2, n - 1)):
        rows = [part(len(text)) for text in texts]
        tokens = torch.tensor([text[i + 1] for text, own in zip(texts, rows) for i in own])
        drafter.extend(states, [len(own) for own in rows], tokens, torch.cat([f[r] for f, r in zip(features, rows)]))
    return drafter, states


def saved(drafter: EagleDrafter, path: Path) -> Path:
    """The drafter as a file of our own layout."""
    weights = state_of(drafter)
    return save_own(path, own_tensors(weights), "drafter", weights.config)

"""A drafter for tests of the engine that is often right: the target itself, with noise on its logits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold.language.decoding.engine import LLMEngine
from tenfold.language.drafting.hybrid_trees import HybridTree
from tenfold.language.drafting.ngram import HybridDrafter, NgramDrafter
from tenfold.language.drafting.protocol import Draft, Drafter, DraftState, Rule, Shape, Uniforms
from tenfold.language.drafting.speculation import Speculation
from tenfold.language.drafting.tree import Tree
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.llama import Llama
from tenfold.language.sampling.sampling import SamplingParams


def tiny_llama(vocabulary: int = 23, seed: int = 0, **changes: Any) -> Llama:
    torch.manual_seed(seed)
    sizes = {"vocabulary": vocabulary, "dim": 16, "hidden": 24, "depth": 2, "heads": 4, "kv_heads": 2, "context": 200}
    model = Llama(LlamaConfig(**{**sizes, **changes})).eval().requires_grad_(False)
    for p in model.parameters():
        torch.nn.init.normal_(p, 1.0 if p.ndim == 1 else 0.0, 0.35 if p.ndim == 2 else 0.1)
    return model


class NoisyTarget(Drafter):
    """Runs the target anew over text and path for every inner node; keeps no state, so it cannot hide the engine's."""

    has_distribution = True

    def __init__(self, target: Llama, noise: float) -> None:
        self.target, self.noise = target, noise

    def extend(
        self, states: Sequence[DraftState], counts: Sequence[int], tokens: Tensor, features: Tensor | None
    ) -> None:
        for state, count in zip(states, counts, strict=True):
            assert tokens[:count].tolist() == state.tokens[state.rows + 1 : state.rows + 1 + count]
            tokens = tokens[count:]
            state.rows += count

    def draft(
        self, states: Sequence[DraftState], tree: Tree, rule: Rule, temperatures: Tensor, uniforms: Uniforms
    ) -> Draft:
        vocabulary = self.target.config.vocabulary
        tokens = torch.full((len(states), tree.nodes), -1)
        q = torch.zeros(len(states), len(tree.inner), vocabulary)
        for row, node in enumerate(tree.inner.tolist()):
            children = [c for c in tree.children[node].tolist() if c >= 0]
            path = [n - 1 for n in range(1, node + 1) if tree.mask[node, n]]
            draws = uniforms(torch.tensor([node]), max(len(children), vocabulary))[:, 0]
            for b, state in enumerate(states):
                assert state.rows == len(state.tokens) - 1
                text = [*state.tokens, *tokens[b, path].tolist()]
                logits = self.target(torch.tensor([text])).logits[0, -1]
                noise = torch.randn(vocabulary, generator=torch.Generator().manual_seed(sum(text) + len(text)))
                heat = float(temperatures[b]) or 1.0
                q[b, row] = ((logits + self.noise * noise) / heat).softmax(-1)
                ranked = self._choose(q[b, row], "top_k" if temperatures[b] == 0 else rule, len(children), draws[b])
                tokens[b, [c - 1 for c in children]] = torch.tensor(ranked)
        point = (temperatures == 0)[:, None].expand(-1, tree.nodes)
        return Draft(tokens, None if rule == "top_k" else q, None, point if bool(point.any()) else None)

    def _choose(self, q: Tensor, rule: Rule, count: int, u: Tensor) -> list[int]:
        if rule == "top_k":
            return q.topk(count).indices.tolist()
        if rule == "independent":
            return torch.searchsorted(q.double().cumsum(-1), u[:count]).clamp_max(len(q) - 1).tolist()
        return (q.log() - (-u[: len(q)].log()).log()).topk(count).indices.tolist()


def alone(model: Llama, prompt: list[int], count: int) -> list[int]:
    """Plain greedy decoding, from scratch for every token."""
    text = list(prompt)
    for _ in range(count):
        text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    return text[len(prompt) :]


def prompts(count: int, vocabulary: int = 23) -> list[list[int]]:
    draw = random.Random(count)
    return [[draw.randrange(vocabulary) for _ in range(draw.randint(1, 17))] for _ in range(count)]


TREE = Tree.from_paths([[0], [1], [0, 0], [0, 1], [1, 0], [0, 0, 0], [0, 0, 0, 0]])
HYBRID = HybridTree.of(TREE, 3)


def make_engine(target: Llama, kind: str, rule: Rule = "top_k", **options: Any) -> LLMEngine:
    """kind: "none", "ngram", "chain", "tree" or "hybrid"."""
    noisy = NoisyTarget(target, noise=0.6)
    if kind == "none":
        return LLMEngine(target, page_size=4, **options)
    if kind == "ngram":
        plan = Speculation(Tree.chain(3))
        return LLMEngine(target, None, NgramDrafter(), speculation=plan, page_size=4, **options)
    shapes: dict[str, Shape] = {"chain": Tree.chain(3), "tree": TREE, "hybrid": HYBRID}
    plan = Speculation(planner=lambda n, s: (shapes[kind], rule))
    drafter = HybridDrafter(noisy, NgramDrafter()) if kind == "hybrid" else noisy
    return LLMEngine(target, None, drafter, speculation=plan, page_size=4, **options)


def finish(engine: LLMEngine, requests: dict[str, tuple[list[int], SamplingParams]]) -> dict[str, list[int]]:
    """Adds them all, runs to the end, and checks that nothing is left behind."""
    for name, (prompt, params) in requests.items():
        engine.add_request(name, prompt, params)
    found: dict[str, list[int]] = {name: [] for name in requests}
    while engine.busy:
        for delta in engine.step():
            found[delta.request_id] += delta.token_ids
    assert engine.runner.pages.free == engine.runner.pages.count
    return found

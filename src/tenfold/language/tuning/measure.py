"""Acceptance of a drafter: tokens per call (TPC) of the target, acceptance by depth, and that the text stays the target's own.

Two measurements. The replay (distillation/replay.py) takes the target's greedy answers and says for every shape of tree
what the closed loop accepts. The engine then decodes for real with the trees that it uses, counts, and the texts are compared
with those of plain decoding. Every figure is a TPC: emitted tokens per decoding call, the bonus token counted, the prompt's
pass not. Small greedy models often repeat themselves and repetition is easy to predict, so the figures are for answers that do
not; those with all answers are beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tenfold.language.decoding.engine import LLM, Result
from tenfold.language.distillation.draft_vocabulary import count_tokens, coverage
from tenfold.language.distillation.replay import accepted_lengths, token_ranks, tokens_per_call
from tenfold.language.distillation.rollout_writing import write
from tenfold.language.distillation.rollouts import Rollout, repeats_itself
from tenfold.language.drafting.drafter import EagleDrafter
from tenfold.language.drafting.hybrid_trees import HybridTree
from tenfold.language.drafting.ngram import LONGEST, Places
from tenfold.language.drafting.reference_trees import HYBRID_10_6, LOOKUP_6, TREE_16
from tenfold.language.drafting.tree import Tree
from tenfold.language.models.prepare import Target
from tenfold.language.sampling.sampling import SamplingParams

TOKENS = 128  # of an answer
DEPTH = 6  # levels that the replay looks at


@dataclass(frozen=True)
class Replayed:
    """Greedy answers to one set of prompts, with the drafter's ranks (`token_ranks`) and what lookup would accept (A)."""

    answers: list[Rollout]
    ranks: list[Int[Tensor, "_ k"]]
    looked_up: list[Int[Tensor, " _"]]

    @property
    def kept(self) -> list[int]:
        """Answers that do not repeat themselves."""
        return [i for i, a in enumerate(self.answers) if not repeats_itself(a.tokens[a.prompt :].tolist())]

    def lengths(self, tree: Tree | HybridTree) -> list[Int[Tensor, " _"]]:
        """What every start of every answer would accept of a tree."""
        own = [accepted_lengths(tree.own, ranks) for ranks in self.ranks]
        return [torch.maximum(a, b.clamp_max(tree.looked_up)) for a, b in zip(own, self.looked_up)]

    def tpc(self, tree: Tree | HybridTree, which: Sequence[int] | None = None) -> float:
        lengths = self.lengths(tree)
        return tokens_per_call([lengths[i] for i in (self.kept if which is None else which)])

    def look_up_tpc(self, chain: int, which: Sequence[int] | None = None) -> float:
        chosen = self.kept if which is None else which
        return tokens_per_call([self.looked_up[i].clamp_max(chain) for i in chosen])

    def by_depth(self, tree: Tree) -> list[float]:
        """Share of the calls that accept at least 1, 2, ... nodes, along the closed loop."""
        hits, calls = torch.zeros(tree.height), 0
        lengths = self.lengths(tree)
        for i in self.kept:
            steps, at = lengths[i].tolist(), 0
            while at < len(steps) - 1:
                hits[: steps[at]] += 1
                calls += 1
                at += steps[at] + 1
        return (hits / max(1, calls)).tolist()


def look_up_lengths(answer: Rollout, chain: int, longest: int = LONGEST) -> Int[Tensor, " a"]:
    """How many tokens from prompt lookup every start of an answer would accept (starts as in `token_ranks`)."""
    tokens, places, lengths = answer.tokens.tolist(), Places(longest), []
    for root in range(answer.prompt - 1, len(tokens)):
        found = places.find(tokens[: root + 1], chain)
        true = tokens[root + 1 :]
        length = 0
        while length < min(len(found), len(true)) and found[length] == true[length]:
            length += 1
        lengths.append(length)
    return torch.tensor(lengths)


def write_greedily(
    target: Target,
    prompts: Sequence[Sequence[int]],
    stops: frozenset[int],
    *,
    aux: tuple[int, ...],
    max_tokens: int = TOKENS,
) -> list[Rollout]:
    """The target's greedy answers, with the features that a drafter reads."""
    return write(
        target.model,
        prompts,
        [0.0] * len(prompts),
        max_tokens=max_tokens,
        stops=stops,
        aux_layers=aux,
        generator=torch.Generator().manual_seed(0),
    )


def replay(drafter: EagleDrafter, target: Target, answers: list[Rollout], depth: int = DEPTH) -> Replayed:
    weight = target.source.state["embedding.weight"]

    def embed(tokens: Tensor) -> Tensor:
        return torch.nn.functional.embedding(tokens, weight).float()

    wide = [Rollout(a.tokens, a.prompt, a.features.float(), a.argmax, a.temperature) for a in answers]
    with torch.no_grad():
        ranks = token_ranks(drafter.float(), embed, wide, depth)
    return Replayed(answers, ranks, [look_up_lengths(a, depth) for a in answers])


def figures(network: EagleDrafter, replayed: Replayed) -> dict[str, Any]:
    """TPC of the reference shapes, prompt lookup as the baseline beside them."""
    every = range(len(replayed.answers))
    trees = {"chain 4": Tree.chain(4), "tree 16": TREE_16, "hybrid 10 + 6": HYBRID_10_6}
    result: dict[str, Any] = {"answers": len(every), "answers that repeat": len(every) - len(replayed.kept)}
    if network.config.reduced:
        counts = count_tokens(replayed.answers, network.config.vocabulary)
        result["draft vocabulary covers"] = coverage(network.ids, counts)
    result["TPC no drafter (baseline)"] = 1.0
    result["TPC prompt lookup 6 (baseline)"] = replayed.look_up_tpc(LOOKUP_6.nodes)
    for name, tree in trees.items():
        result[f"TPC {name}"] = replayed.tpc(tree)
        result[f"TPC {name}, all answers"] = replayed.tpc(tree, every)
    for depth, share in enumerate(replayed.by_depth(TREE_16), 1):
        result[f"tree 16 accepts >= {depth}"] = share
    return result


def through_engine(llms: Mapping[str, LLM], prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Decodes for real, with and without the drafter: TPC, and how many answers are the same to the last token."""
    params = SamplingParams(max_tokens=TOKENS)
    plain = llms["none"].generate(list(prompts), params)
    result: dict[str, Any] = {}
    for name in llms:
        if name == "none":
            continue
        drafted = llms[name].generate(list(prompts), params)
        same = sum(a.token_ids == b.token_ids for a, b in zip(plain, drafted, strict=True))
        result["engine TPC tree 16"] = engine_tpc([r for r in drafted if not repeats_itself(r.token_ids)])
        result["engine TPC tree 16, all answers"] = engine_tpc(drafted)
        result["same text as without a drafter"] = f"{same} of {len(plain)} in {llms[name].format}"
    return result


def engine_tpc(results: Sequence[Result]) -> float:
    """TPC over several answers, the prompt's pass not counted: its last token is the first root."""
    return sum(r.stats.tokens for r in results) / max(1, sum(r.stats.calls for r in results))

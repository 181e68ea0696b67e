"""The decoding step of speculative decoding, once for all paths: draft, verify by rejection sampling, accept, count.

    outcome = decoding_step(propose, forward, sampling=sampling, rule=rule, numbers=HostNumbers(seeds, lengths), hooks=[...])
    outcome.tokens[b, : length + 1]                             what a request emits: accepted tokens and the bonus token

The runner (decoding/runner.py) calls it with tensors of the host, and the steps that stay on a device (decoding/device_step.py)
with tensors of the device. What differs is handed in:
    propose   the drafter's proposal, already led by grammars where there are any
    forward   the target's pass, over pages that the host or only the device knows
    numbers   random numbers from lists of the host (numpy) or from tensors; they are the same numbers
    hooks     what changes logits before verification: penalties, then grammar masks; steps on a device have none
What is done with an outcome stays apart: the host moves rows and feeds the drafter only for requests that continue, by
lists whose lengths differ; a device does it for all, in tensors of one shape, because a CUDA graph has no other.

    B requests   N root and nodes   n nodes   K height of the tree + 1   R siblings at most   V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenfold.language.decoding.request import Request
from tenfold.language.drafting.protocol import Draft, DraftTrees, Rule
from tenfold.language.drafting.rejection import Accepted, simulate, verify_greedy, verify_sampled
from tenfold.language.models.llama import Output
from tenfold.language.sampling.penalties import penalise
from tenfold.language.sampling.randomness import ACCEPT, BONUS, DRAFT, device_uniforms, uniforms
from tenfold.language.sampling.sampling import SamplingTensors, allow

Propose = Callable[[], tuple[Draft, DraftTrees]]
Forward = Callable[[Tensor, DraftTrees], tuple[Output, Tensor]]
"""(proposed tokens of all nodes, trees) -> the target's output, and its logits where they are verified."""
Hook = Callable[[Tensor, Draft, DraftTrees], Tensor]
"""(logits (B, N, V), proposal, trees) -> logits."""


@runtime_checkable
class Numbers(Protocol):
    """Random numbers of a step's requests (sampling/randomness.py)."""

    def draft(self, slots: Int[Tensor, " S"], width: int) -> Float[Tensor, "B S width"]:
        """For drawing siblings: `Uniforms` of drafting/protocol.py."""
        ...

    def accept(self, siblings: int, levels: int) -> Float[Tensor, "B K R1"]:
        """For rejection sampling: at every level one for each sibling, and one for the bonus token."""
        ...

    def coins(self, count: int) -> Float[Tensor, "B K"]:
        """For a simulated verdict."""
        ...


class HostNumbers:
    """From lists: the requests' seeds, and the lengths of their texts."""

    def __init__(self, seeds: Sequence[int], lengths: Sequence[int]) -> None:
        self.seeds, self.lengths = seeds, lengths

    def draft(self, slots: Int[Tensor, " S"], width: int) -> Float[Tensor, "B S width"]:
        return uniforms(self.seeds, self.lengths, (DRAFT + slots).tolist(), width)

    def accept(self, siblings: int, levels: int) -> Float[Tensor, "B K R1"]:
        purposes = [*range(ACCEPT, ACCEPT + siblings), BONUS]
        places = [[length + level for length in self.lengths] for level in range(levels)]
        return torch.stack([uniforms(self.seeds, place, purposes)[:, :, 0] for place in places], dim=1)

    def coins(self, count: int) -> Float[Tensor, "B K"]:
        return uniforms(self.seeds, self.lengths, [ACCEPT], count)[:, 0]


class DeviceNumbers:
    """The same numbers from tensors, made on their device."""

    def __init__(self, seeds: Int[Tensor, " B"], lengths: Int[Tensor, " B"]) -> None:
        self.seeds, self.lengths = seeds, lengths

    def draft(self, slots: Int[Tensor, " S"], width: int) -> Float[Tensor, "B S width"]:
        return device_uniforms(self.seeds, self.lengths, DRAFT + slots, width)

    def accept(self, siblings: int, levels: int) -> Float[Tensor, "B K R1"]:
        device = self.seeds.device
        ranks = torch.arange(ACCEPT, ACCEPT + siblings, device=device)
        purposes = torch.cat([ranks, torch.full((1,), BONUS, device=device)])
        places = [self.lengths + level for level in range(levels)]
        return torch.stack([device_uniforms(self.seeds, place, purposes)[:, :, 0] for place in places], dim=1)

    def coins(self, count: int) -> Float[Tensor, "B K"]:
        purpose = torch.full((1,), ACCEPT, device=self.seeds.device)
        return device_uniforms(self.seeds, self.lengths, purpose, count)[:, 0]


@dataclass(frozen=True)
class Outcome:
    """path (B, K): the root and the accepted nodes, behind them every place itself. tokens (B, K): the emitted tokens, then
    zeros. length (B): accepted tokens. drafted (B): draft tokens. logits: before the hooks."""

    trees: DraftTrees
    out: Output
    logits: Float[Tensor, "B N V"]
    path: Int[Tensor, "B K"]
    tokens: Int[Tensor, "B K"]
    accepted: Accepted
    drafted: Int[Tensor, " B"]


def decoding_step(
    roots: Int[Tensor, " B"],
    propose: Propose,
    forward: Forward,
    *,
    sampling: SamplingTensors,
    rule: Rule,
    numbers: Numbers,
    hooks: Sequence[Hook] = (),
    simulated: float | None = None,
) -> Outcome:
    """One pass of the target over the roots and the draft tokens, and what it accepts. simulated: see
    Speculation.simulated_accept. Waits for no device where everything is on it."""
    draft, trees = propose()
    nodes = torch.cat([roots[:, None], draft.tokens.clamp_min(0)], dim=1)
    out, found = forward(nodes, trees)
    logits = found
    for hook in hooks:
        logits = hook(logits, draft, trees)
    accepted = verify(logits, draft, trees, sampling=sampling, rule=rule, numbers=numbers, simulated=simulated)
    path, tokens = emitted(nodes, accepted)
    return Outcome(trees, out, found, path, tokens, accepted, (draft.tokens >= 0).sum(-1))


def verify(
    logits: Float[Tensor, "B N V"],
    draft: Draft,
    trees: DraftTrees,
    *,
    sampling: SamplingTensors,
    rule: Rule,
    numbers: Numbers,
    simulated: float | None,
) -> Accepted:
    """Which draft tokens are accepted: by the argmax, by rejection sampling, or by a coin."""
    if simulated is not None:
        return simulate(logits, draft, trees, numbers.coins(max(1, trees.height)), simulated)
    if sampling.greedy:
        return verify_greedy(logits, draft, trees)
    return verify_sampled(logits, sampling, draft, trees, numbers.accept(trees.siblings, trees.height + 1), rule)


def emitted(nodes: Int[Tensor, "B N"], accepted: Accepted) -> tuple[Int[Tensor, "B K"], Int[Tensor, "B K"]]:
    """(paths, tokens) of `Outcome`: the tokens of the accepted nodes, one place up, and the bonus token behind them."""
    place = torch.arange(accepted.path.shape[1], device=nodes.device)
    inside = place <= accepted.length[:, None]
    path = torch.where(inside, accepted.path, place)
    following = torch.cat([path[:, 1:], path[:, :1]], dim=1).clamp_max(nodes.shape[1] - 1)
    tokens = torch.where(place == accepted.length[:, None], accepted.bonus[:, None], nodes.gather(1, following))
    return path, torch.where(inside, tokens, 0)


def record(request: Request, accepted: int, drafted: int, height: int, *, simulated: bool) -> None:
    """Adds a step to what the request's answer has cost."""
    request.stats.count(accepted, drafted, height)
    request.stats.simulated |= simulated


def hooks_of(requests: Sequence[Request], vocabulary: int) -> list[Hook]:
    """What the requests' sampling parameters do to logits: penalties before grammars, in the order of plain decoding."""
    hooks: list[Hook] = []
    if any(r.params.penalised for r in requests):
        hooks.append(lambda logits, draft, trees: _penalised(requests, logits, draft, trees))
    if any(r.grammar is not None for r in requests):
        hooks.append(lambda logits, draft, trees: _allowed(requests, vocabulary, logits, draft, trees))
    return hooks


def _penalised(requests: Sequence[Request], logits: Tensor, draft: Draft, trees: DraftTrees) -> Tensor:
    """The logits with what each request takes off for tokens that are before a node: in the text, or on the node's path."""
    rows = list(logits.float().unbind())
    for b, request in enumerate(requests):
        if request.params.penalised:
            before = request.tokens, request.prompt_length
            with request.own_part():
                rows[b] = penalise(rows[b], request.params, *before, draft.tokens[b], trees.mask_of(b))
    return torch.stack(rows)


def _allowed(requests: Sequence[Request], vocabulary: int, logits: Tensor, draft: Draft, trees: DraftTrees) -> Tensor:
    """The logits with what the requests' grammars forbid behind every node at -inf."""
    allowed = torch.ones(len(requests), trees.nodes + 1, vocabulary, dtype=torch.bool)
    for b, request in enumerate(requests):
        if request.grammar is not None:
            with request.own_part():
                allowed[b] = request.grammar.allowed(trees.one(b), draft.tokens[b])
    return allow(logits, allowed)

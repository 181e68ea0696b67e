"""The law of the next token, in the one order that plain decoding and speculation share, and the randomness behind it.

    penalties -> grammar mask -> temperature -> top-k -> top-p           (the order of transformers' generate and of vLLM)

    probabilities = token_laws(logits, Laws.of([SamplingParams(temperature=0.7, top_p=0.9)]))
    u = uniforms(seeds, positions, purposes)                 (B, purposes), in (0, 1)

A uniform depends on (request seed, emitted position, purpose) alone: neither neighbours in the batch nor the order of
arrival can change an answer. Ties at the border of top-k or top-p are all kept, so the law does not depend on a sort.

    M rows   V vocabulary   B requests
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tenfold.engine.config import require

FEW = 1024  # largest candidates looked at before everything is sorted
BONUS, ACCEPT, DRAFT = 0, 1, 1 << 16  # purposes: the last draw of a step; accepting the sibling of rank r; drafting


@dataclass(frozen=True)
class SamplingParams:
    """How one request is answered. temperature 0 is greedy; top_k 0 and top_p 1 cut nothing; `seed` None draws one.

    `stop` ends the answer at the first of these texts (which is left out); `ignore_eos` goes on past the model's end
    tokens; `logprobs` returns the log-probabilities of the model (before temperature) of the token and this many others.
    The penalties are those of language/penalties.py; they count for temperature 0 too.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    grammar: Any = None  # a Grammar of language/grammar.py
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.temperature < 100, "temperature", self.temperature, "a number from 0 to below 100")
        require(self.top_k >= 0, "top_k", self.top_k, "a whole number >= 0 (0: off)")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "a number above 0, at most 1")
        require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "a whole number >= 1")
        require(len(self.stop) <= 16 and all(self.stop), "stop", self.stop, "at most 16 texts, none empty")
        require(self.seed is None or 0 <= self.seed < 1 << 63, "seed", self.seed, "a whole number from 0 to 2^63 - 1")
        require(0 < self.repetition_penalty <= 10, "repetition_penalty", self.repetition_penalty, "above 0, at most 10")
        require(-2 <= self.frequency_penalty <= 2, "frequency_penalty", self.frequency_penalty, "-2 to 2")
        require(-2 <= self.presence_penalty <= 2, "presence_penalty", self.presence_penalty, "-2 to 2")
        require(self.logprobs is None or 0 <= self.logprobs <= 20, "logprobs", self.logprobs, "0 to 20")

    @property
    def penalised(self) -> bool:
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Laws:
    """The parameters of every request of a step as tensors (B)."""

    temperature: Float[Tensor, " B"]
    top_k: Int[Tensor, " B"]
    top_p: Float[Tensor, " B"]

    @staticmethod
    def of(params: Sequence[SamplingParams]) -> Laws:
        return Laws(
            torch.tensor([float(p.temperature) for p in params]),
            torch.tensor([p.top_k for p in params]),
            torch.tensor([float(p.top_p) for p in params]),
        )

    @property
    def greedy(self) -> bool:
        return not bool(self.temperature.any())


def token_laws(logits: Float[Tensor, "m v"], laws: Laws) -> Float[Tensor, "m v"]:
    """Probabilities of the next token; forbidden tokens have logits of -inf. Temperature 0 is a point mass at the argmax
    (the first of equals)."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    greedy = laws.temperature == 0
    best = wide.argmax(-1, keepdim=True)
    p = (wide / torch.where(greedy, 1.0, laws.temperature)[:, None].to(wide.dtype)).softmax(-1)
    if bool(((laws.top_k > 0) & ~greedy).any()):
        p = _top_k(p, torch.where(greedy, 0, laws.top_k))
    if bool(((laws.top_p < 1) & ~greedy).any()):
        p = _top_p(p, torch.where(greedy, 1.0, laws.top_p))
    if bool(greedy.any()):
        point = torch.zeros_like(p).scatter_(1, best, 1.0)
        p = torch.where(greedy[:, None], point, p)
    return p


def _top_k(p: Tensor, top_k: Tensor) -> Tensor:
    size = p.shape[-1]
    most = min(int(top_k.max()), size)
    best = p.topk(most, dim=-1).values
    place = (top_k.clamp(1, most) - 1)[:, None]
    border = torch.where(((top_k > 0) & (top_k < size))[:, None], best.gather(1, place), 0.0)
    return _renormalised(p.masked_fill(p < border, 0.0))


def _top_p(p: Tensor, top_p: Tensor) -> Tensor:
    """The smallest set of most likely tokens with at least this mass, and those as likely as the last of them."""
    size = p.shape[-1]
    best = p.topk(min(FEW, size), dim=-1).values
    limit = top_p[:, None].to(p.dtype)
    total = best.cumsum(-1)
    if size > FEW and bool(((total[:, -1:] < limit) & (top_p < 1)[:, None]).any()):
        best = p.sort(dim=-1, descending=True).values
        total = best.cumsum(-1)
    inside = total - best < limit  # the mass before this token is not enough yet
    border = best.masked_fill(~inside, torch.inf).amin(-1, keepdim=True)
    border = torch.where((top_p < 1)[:, None], border, 0.0)
    return _renormalised(p.masked_fill(p < border, 0.0))


def _renormalised(p: Tensor) -> Tensor:
    return p / p.sum(-1, keepdim=True)


def draw(p: Float[Tensor, "m v"], u: Float[Tensor, " m"]) -> Int[Tensor, " m"]:
    """One id per row by inverting the cumulative sum; never one of probability 0."""
    total = p.double().cumsum(-1)
    ids = torch.searchsorted(total, (u.double() * total[:, -1])[:, None], right=True)[:, 0]
    last = p.shape[-1] - 1 - (p > 0).flip(-1).int().argmax(-1)  # u so near 1 that rounding would step past the end
    return torch.minimum(ids, last)


def allow(logits: Float[Tensor, "*b v"], allowed: Bool[Tensor, "*b v"]) -> Float[Tensor, "*b v"]:
    """Logits with what a grammar forbids at -inf. A row that allows nothing belongs to no reachable node: it stays."""
    reachable = allowed.any(-1, keepdim=True)
    return logits.masked_fill(~allowed & reachable, -torch.inf)


def uniforms(
    seeds: Sequence[int], positions: Sequence[int], purposes: Sequence[int], width: int = 1
) -> Float[Tensor, "B purposes width"]:
    """Counter-based numbers in (0, 1), fp64: three rounds of the SplitMix64 finaliser over (seed, position, purpose, index)."""
    with np.errstate(over="ignore"):
        key = _mix(np.array(seeds, np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        key = _mix(key ^ _mix(np.array(positions, np.uint64)))
        key = _mix(key[:, None] ^ _mix(np.array(purposes, np.uint64) + np.uint64(1 << 40)))
        index = np.arange(1, width + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits = _mix(key[:, :, None] + index)
    return torch.from_numpy(((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

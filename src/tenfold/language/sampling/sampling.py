"""Sampling parameters and the distribution of the next token, in the one order that plain and speculative decoding share.

    penalties -> grammar mask -> temperature -> top-k -> top-p           (the order of transformers' generate and of vLLM)

    probabilities = token_probabilities(logits, SamplingTensors.of([SamplingParams(temperature=0.7, top_p=0.9)]))

Ties at the border of top-k or top-p are all kept, so the distribution does not depend on a sort. The numbers that `draw` takes
are those of sampling/randomness.py.

    M rows   V vocabulary   B requests
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tenfold.config import require

FEW = 1024  # largest candidates looked at before everything is sorted
COLDEST = 1e-5  # below it a temperature is 0, as in vLLM: fp32 cannot hold the smallest that a JSON number can say
Kind = Literal["greedy", "sampled", "top_k", "top_p"]


@dataclass(frozen=True)
class SamplingParams:
    """How one request is answered. temperature 0 is greedy, and so is any below 1e-5; top_k 0 and top_p 1 cut nothing; `seed`
    None draws one.

    `stop` ends the answer at the first of these texts (which is left out); `ignore_eos` continues past the model's end
    tokens; `logprobs` returns the log-probabilities of the model (before temperature) of the token and this many others.
    The penalties are those of sampling/penalties.py; they count for temperature 0 too.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    grammar: Any = None  # a Grammar of decoding/grammar.py
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.temperature < 100, "temperature", self.temperature, "a number from 0 to below 100")
        if self.temperature < COLDEST:
            object.__setattr__(self, "temperature", 0.0)
        require(0 <= self.top_k < 1 << 63, "top_k", self.top_k, "a whole number from 0 (off) to 2^63 - 1")
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
class SamplingTensors:
    """The sampling parameters of every request of a step as tensors (B), and which kinds there are: so that the host need not
    wait for a device to say it."""

    temperature: Float[Tensor, " B"]
    top_k: Int[Tensor, " B"]
    top_p: Float[Tensor, " B"]
    kinds: frozenset[Kind]

    @staticmethod
    def of(params: Sequence[SamplingParams]) -> SamplingTensors:
        return SamplingTensors(
            torch.tensor([float(p.temperature) for p in params]),
            torch.tensor([p.top_k for p in params]),
            torch.tensor([float(p.top_p) for p in params]),
            kinds_of(params),
        )

    @property
    def greedy(self) -> bool:
        """Whether all requests are."""
        return "sampled" not in self.kinds


def kinds_of(params: Sequence[SamplingParams]) -> frozenset[Kind]:
    """What there is to do for these requests together."""
    kinds: set[Kind] = set()
    for p in params:
        kinds.add("sampled" if p.temperature > 0 else "greedy")
        if p.temperature > 0 and p.top_k > 0:
            kinds.add("top_k")
        if p.temperature > 0 and p.top_p < 1:
            kinds.add("top_p")
    return frozenset(kinds)


def token_probabilities(logits: Float[Tensor, "m v"], params: SamplingTensors) -> Float[Tensor, "m v"]:
    """Probabilities of the next token; forbidden tokens have logits of -inf. Temperature 0 is a point mass at the argmax
    (the first of equals)."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    greedy = params.temperature == 0
    best = wide.argmax(-1, keepdim=True)
    p = heated(wide, torch.where(greedy, 1.0, params.temperature)[:, None])
    if "top_k" in params.kinds:
        p = _top_k(p, torch.where(greedy, 0, params.top_k))
    if "top_p" in params.kinds:
        p = _top_p(p, torch.where(greedy, 1.0, params.top_p))
    if "greedy" in params.kinds:
        point = torch.zeros_like(p).scatter_(1, best, 1.0)
        p = torch.where(greedy[:, None], point, p)
    return p


def heated(logits: Float[Tensor, "*b v"], temperature: Float[Tensor, "*#b 1"]) -> Float[Tensor, "*b v"]:
    """softmax(logits / temperature). The largest is taken off first, so that no small temperature makes an infinity of it."""
    return ((logits - logits.amax(-1, keepdim=True)) / temperature.to(logits.dtype)).softmax(-1)


def _top_k(p: Tensor, top_k: Tensor) -> Tensor:
    size = p.shape[-1]
    most = size if p.device.type != "cpu" else min(int(top_k.max()), size)  # a device is not waited for
    best = p.topk(most, dim=-1).values
    place = (top_k.clamp(1, most) - 1)[:, None]
    border = torch.where(((top_k > 0) & (top_k < size))[:, None], best.gather(1, place), 0.0)
    return _renormalised(p.masked_fill(p < border, 0.0))


def _top_p(p: Tensor, top_p: Tensor) -> Tensor:
    """The smallest set of most likely tokens with at least this mass, and those as likely as the last of them."""
    size = p.shape[-1]
    best = p.topk(min(FEW, size), dim=-1).values
    limit = top_p[:, None].to(p.dtype).clamp_min(torch.finfo(p.dtype).tiny)  # a top_p too small for fp32 keeps the best
    total = best.cumsum(-1)
    if size > FEW and (p.device.type != "cpu" or bool(((total[:, -1:] < limit) & (top_p < 1)[:, None]).any())):
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
    """Logits with what a grammar forbids at -inf. A row that allows nothing has no distribution: it belongs to a node that is
    not reached, or to a dead end, where the caller ends the answer (decoding/grammar.py, `advance`)."""
    return logits.masked_fill(~allowed, -torch.inf)

"""Writing rollouts: the target continues many prompts in one batch, and keeps the features that a drafter learns from.

    rollouts = write(target, prompts, temperatures, max_tokens=192, stops={2}, aux_layers=(2, 15, 27), generator=g)

A finished rollout's place is taken by the next prompt at once, so the batch stays full to the end. What is written depends on
the generator and the order of the prompts only. (Decoding for users, with its seeds per request and its speculation,
is decoding/engine.py; this keeps features, which that does not.)

    B places   M new rows together   F width of the features (auxiliary layers, then the state after the last norm)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tenfold.inference.pages import PageAllocator, PagedCache, PageTable
from tenfold.language.distillation.rollouts import Rollout
from tenfold.language.models.llama import Llama
from tenfold.language.models.paged_forward import Passes
from tenfold.language.sampling.sampling import SamplingParams, SamplingTensors, token_probabilities


@dataclass
class _Place:
    """One rollout being written."""

    number: int
    tokens: list[int]
    prompt: int
    temperature: float
    table: PageTable
    features: list[Tensor] = field(default_factory=list)
    argmax: list[int] = field(default_factory=list)


@torch.no_grad()
def write(
    target: Llama,
    prompts: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    *,
    max_tokens: int,
    stops: Collection[int],
    aux_layers: Sequence[int],
    generator: torch.Generator,
    top_p: float = 1.0,
    batch: int = 32,
) -> list[Rollout]:
    """A rollout for every prompt, in the order of the prompts; its last token is a stop id unless it was cut."""
    if not prompts:
        return []
    c = target.config
    longest = max(map(len, prompts)) + max_tokens + 1
    size = 16
    pages = PageAllocator(min(batch, len(prompts)) * -(-longest // size), size)
    weight = target.embedding.weight
    cache = PagedCache(c.depth, c.kv_heads, c.width, pages.count, size, weight.dtype, weight.device)
    forward = Passes(target)
    waiting = iter(list(enumerate(zip(prompts, temperatures, strict=True))))
    places: list[_Place] = []
    done: list[tuple[int, Rollout]] = []
    while True:
        fresh = list(_open(waiting, pages, batch - len(places), longest))
        if not fresh and not places:
            break
        for group in (fresh, places):
            if group:
                _advance(forward, cache, group, aux_layers, generator, top_p)
        going: list[_Place] = []
        for place in [*places, *fresh]:
            if place.tokens[-1] in stops or len(place.tokens) - place.prompt >= max_tokens:
                pages.close(place.table)
                done.append((place.number, _finish(place)))
            else:
                going.append(place)
        places = going
    return [rollout for _, rollout in sorted(done, key=lambda pair: pair[0])]


def _open(waiting: Iterator, pages: PageAllocator, free: int, longest: int) -> Iterator[_Place]:
    for _ in range(free):
        following = next(waiting, None)
        if following is None:
            return
        number, (prompt, temperature) = following
        table = pages.open(longest)
        covered = pages.cover(table, longest)
        assert covered, "a place always has its pages"
        yield _Place(number, list(prompt), len(prompt), temperature, table)


def _advance(
    forward: Passes,
    cache: PagedCache,
    places: list[_Place],
    aux_layers: Sequence[int],
    generator: torch.Generator,
    top_p: float,
) -> None:
    """Runs the tokens of every place that have not been through the target (the whole prompt, or the last one), and adds the
    token that follows."""
    starts = [sum(map(len, place.features)) for place in places]
    counts = [len(place.tokens) - start for place, start in zip(places, starts)]
    tokens = torch.tensor([i for place, start in zip(places, starts) for i in place.tokens[start:]])
    positions = torch.cat([torch.arange(start, start + count) for start, count in zip(starts, counts)])
    device = cache.keys.device
    step = cache.step([place.table for place in places], starts, counts)
    last = torch.tensor(counts).cumsum(0) - 1
    out = forward(
        tokens[None].to(device), positions[None].to(device), step, aux_layers=aux_layers, logit_rows=last.to(device)
    )
    features = out.hidden[0] if out.aux is None else torch.cat([out.aux[0], out.hidden[0]], dim=-1)
    logits = out.logits.float().cpu()
    best = logits.argmax(-1)
    chosen = best.clone()
    hot = [b for b, place in enumerate(places) if place.temperature > 0]
    if hot:
        params = SamplingTensors.of([SamplingParams(temperature=places[b].temperature, top_p=top_p) for b in hot])
        cumulative = token_probabilities(logits[hot], params).cumsum(-1)
        draws = torch.rand(len(hot), 1, generator=generator) * cumulative[:, -1:]
        chosen[hot] = torch.searchsorted(cumulative, draws, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)
    parts = features.bfloat16().cpu().split(counts)
    for place, count, part, likeliest, token in zip(places, counts, parts, best.tolist(), chosen.tolist()):
        place.features.append(part)
        place.argmax += [likeliest] * count  # of a prompt's rows only the last one's is ever asked for
        place.tokens.append(token)


def _finish(place: _Place) -> Rollout:
    rows = torch.cat(place.features)
    features = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])  # the last token has not been through the target
    argmax = torch.tensor([*place.argmax, 0], dtype=torch.int32)
    return Rollout(torch.tensor(place.tokens, dtype=torch.int32), place.prompt, features, argmax, place.temperature)

"""Isolation of requests that share a step: when a pass fails for all, those that fail alone too are ended; the others continue.

    prefill(runner, parts)
    steps = decode(runner, requests, shape, rule, None)        usually one Step; none when every request has failed

What is done for one request at a time (penalties, grammar, log-probabilities, its text) is guarded where it is done
(`Request.own_part`). Here is what is done for all in one tensor: drafting, the target's pass, verification. A pass changes no
request before it has succeeded, and random numbers are keyed by the request's own text, so it can be done again.
"""

from __future__ import annotations

from collections.abc import Sequence

from tenfold.language.decoding.request import Request
from tenfold.language.decoding.runner import Runner, Step
from tenfold.language.drafting.protocol import Rule, Shape


def prefill(runner: Runner, parts: Sequence[tuple[Request, int]]) -> None:
    """`Runner.prefill`; requests that fail have their error."""
    before = [(request.rows, request.draft.rows if request.draft else 0) for request, _ in parts]
    try:
        runner.prefill(parts)
    except Exception:
        for part, (rows, drafted) in zip(parts, before):
            request = part[0]
            request.rows = rows
            if request.draft is not None:
                request.draft.rows = drafted
            with request.own_part():
                runner.prefill([part])


def decode(runner: Runner, requests: list[Request], shape: Shape, rule: Rule, simulated: float | None) -> list[Step]:
    """`Runner.decode`; requests that fail have their error, and are in no step when it was the whole pass."""
    try:
        return [runner.decode(requests, shape, rule, simulated)]
    except Exception as error:
        if len(requests) == 1:
            requests[0].fail(error)
            return []
    alone: list[Step] = []
    for request in requests:
        with request.own_part():
            alone.append(runner.decode([request], shape, rule, simulated))
    rest = [request for request in requests if request.error is None]
    if len(rest) == len(requests):  # together they fail, alone none does
        return alone
    return decode(runner, rest, shape, rule, simulated) if rest else []

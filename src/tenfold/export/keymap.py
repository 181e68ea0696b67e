"""Key maps: one table per layout says where every parameter of ours stands in theirs, and works in both directions.

    Link("qkv.weight", (12, 4), Part("q.weight", (4, 4)), Part("k.weight", (4, 4)), Part("v.weight", (4, 4)))

The parts of a link are joined along their first axis; a single part may be stored in another shape of the same size. Because
reading joins exactly what writing splits, a round trip keeps every bit. Reading is strict: what is missing, unexpected
or of another shape is listed in whole, each with the nearest name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tenfold.errors import WeightsError, nearest

LISTED = 40  # names of each kind that a message prints; the count is always exact


@dataclass(frozen=True)
class Part:
    """A tensor in the file. `default` stands in when the file has no such entry (a buffer that a layout leaves out)."""

    name: str
    shape: tuple[int, ...]
    default: Tensor | None = None


class Link:
    """One parameter of ours, its shape, and the parts that make it."""

    def __init__(self, own: str, shape: Sequence[int], *parts: Part) -> None:
        self.own, self.shape, self.parts = own, tuple(shape), parts


def read_links(links: Sequence[Link], tensors: Mapping[str, Tensor], where: object) -> dict[str, Tensor]:
    """Tensors under our names and in our shapes; a WeightsError lists every difference."""
    expected = {part.name: part.shape for link in links for part in link.parts}
    optional = {part.name for link in links for part in link.parts if part.default is not None}
    check_names(expected, tensors, where, optional)
    state = {}
    for link in links:
        pieces = [tensors.get(part.name, part.default) for part in link.parts]
        stored = [tensors[part.name] for part in link.parts if part.name in tensors]
        joined = [piece if not stored else piece.to(stored[0].dtype) for piece in pieces if piece is not None]
        state[link.own] = (joined[0] if len(joined) == 1 else torch.cat(joined)).reshape(link.shape)
    return state


def write_links(links: Sequence[Link], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under their names and in their shapes."""
    unmapped = set(state) - {link.own for link in links}
    assert not unmapped, f"no link for {sorted(unmapped)}"
    written = {}
    for link in links:
        pieces = [state[link.own]]
        if len(link.parts) > 1:
            pieces = list(pieces[0].split([part.shape[0] for part in link.parts]))
        for part, piece in zip(link.parts, pieces, strict=True):
            written[part.name] = piece.reshape(part.shape)
    return written


def check_names(
    expected: Mapping[str, Sequence[int]],
    found: Mapping[str, Tensor],
    where: object,
    optional: Collection[str] = (),
) -> None:
    """Raises WeightsError with all missing, unexpected and misshaped names, or returns."""
    missing = sorted(name for name in expected if name not in found and name not in optional)
    extra = sorted(name for name in found if name not in expected)
    shaped = [(name, tuple(t.shape), tuple(expected[name])) for name, t in sorted(found.items()) if name in expected]
    misshaped = [(name, has, needs) for name, has, needs in shaped if has != needs]
    if not (missing or extra or misshaped):
        return
    # The nearest name of a missing key is most likely among the unexpected ones, and the other way round.
    lines = [f"{where}: the weights do not fit; nothing was loaded."]
    lines += _listing("missing", missing, extra)
    lines += _listing("unexpected", extra, missing or list(expected))
    lines += _listing("of another shape", [f"{name}  (has {has}, needs {needs})" for name, has, needs in misshaped])
    raise WeightsError("\n".join(lines))


def _listing(what: str, names: list[str], candidates: Sequence[str] = ()) -> list[str]:
    if not names:
        return []
    lines = [f"  {len(names)} {what}:"]
    for name in names[:LISTED]:
        close = nearest(name, candidates)
        lines.append(f"    {name}" + (f"  (nearest: {close})" if close else ""))
    return lines if len(names) <= LISTED else [*lines, f"    ... and {len(names) - LISTED} more"]

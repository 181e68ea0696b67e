"""Random numbers for sampling that depend only on (request seed, emitted position, purpose, index).

    u = uniforms(seeds, positions, purposes, width)             (B, purposes, width), in (0, 1), on the host
    u = device_uniforms(seeds, positions, purposes, width)      the same numbers, made where the tensors lie

Neither neighbours in a batch nor the order of arrival can change an answer. Three rounds of the SplitMix64 finaliser (Steele,
Lea and Flood 2014). The host has numpy for it, which takes a quarter of torch's time for a few numbers.

    B requests   P purposes
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

BONUS, ACCEPT, DRAFT = 0, 1, 1 << 16  # purposes: the last draw of a step; accepting the sibling of rank r; drafting
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def uniforms(
    seeds: Sequence[int], positions: Sequence[int], purposes: Sequence[int], width: int = 1
) -> Float[Tensor, "B P width"]:
    """Numbers in (0, 1), fp64."""
    with np.errstate(over="ignore"):
        key = _mix(np.array(seeds, np.uint64) + np.uint64(GOLDEN))
        key = _mix(key ^ _mix(np.array(positions, np.uint64)))
        key = _mix(key[:, None] ^ _mix(np.array(purposes, np.uint64) + np.uint64(1 << 40)))
        index = np.arange(1, width + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        bits = _mix(key[:, :, None] + index)
    return torch.from_numpy(((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(SECOND)
    return x ^ (x >> np.uint64(31))


def device_uniforms(
    seeds: Int[Tensor, " B"], positions: Int[Tensor, " B"], purposes: Int[Tensor, " P"], width: int = 1
) -> Float[Tensor, "B P width"]:
    """See `uniforms`. torch has signed numbers of 64 bits only, whose sums and products wrap as unsigned ones do."""
    golden = _signed(GOLDEN)
    key = _mixed(seeds + golden)
    key = _mixed(key ^ _mixed(positions))
    key = _mixed(key[:, None] ^ _mixed(purposes + (1 << 40)))
    index = torch.arange(1, width + 1, device=key.device) * golden
    bits = _mixed(key[:, :, None] + index)
    return (_shifted(bits, 11).double() + 0.5) * 2.0**-53


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _signed(FIRST)
    x = (x ^ _shifted(x, 27)) * _signed(SECOND)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left for a negative number too."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(unsigned: int) -> int:
    return unsigned - (1 << 64) if unsigned >> 63 else unsigned

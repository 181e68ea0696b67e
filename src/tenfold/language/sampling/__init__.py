"""Sampling: probabilities from logits, penalties, and randomness that depends on no neighbour."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenfold.registry import public_names

if TYPE_CHECKING:
    from tenfold.language.sampling.sampling import SamplingParams as SamplingParams

__all__ = ["SamplingParams"]

__getattr__, __dir__ = public_names(__name__, {"tenfold.language.sampling.sampling": "SamplingParams"})

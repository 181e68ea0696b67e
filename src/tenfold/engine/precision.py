"""Mixed precision: the type in which autocast runs a step's matrix products, fp32 or bf16."""

from __future__ import annotations

import torch

from tenfold.kernels.machine import bf16_is_fast


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """bf16 where the configuration asks for it, or, for `auto`, where the device has units for it."""
    wanted = precision == "bf16" or (precision == "auto" and bf16_is_fast(device))
    return torch.bfloat16 if wanted else None

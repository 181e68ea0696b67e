"""Flags that make a published recipe of the wing small enough for a test."""

from __future__ import annotations

from collections.abc import Mapping


def flags(values: Mapping[str, object]) -> list[str]:
    """`{"batch": 4}` as `--batch 4`; a tuple is several words."""
    words = []
    for name, value in values.items():
        words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


# A network of 0.2 M parameters with everything of the published recipes: masks, both heads, registers, rescaled positions.
SMALL = flags(
    {
        "model.dim": 48,
        "model.depth": 2,
        "model.heads": 2,
        "model.drop-path": 0,
        "model.hidden": 64,
        "model.layer-scale": 0.1,
        "batch": 4,
        "crops.global-size": 64,
        "crops.local-size": 32,
        "crops.local-crops": 2,
        "dino.hidden": 32,
        "dino.bottleneck": 16,
        "dino.prototypes": 40,
        "ibot.hidden": 32,
        "ibot.bottleneck": 16,
        "ibot.prototypes": 24,
        "source-side": 80,
        "trainer.precision": "fp32",
        "trainer.log-every": 1,
        "trainer.workers": 0,
        "trainer.validate-every": 0,
        "trainer.device": "cpu",
        "objective.freeze-prototypes": 2,
        "optim.schedule.warmup": 0,
        "optim.lr": 1e-3,
    }
)

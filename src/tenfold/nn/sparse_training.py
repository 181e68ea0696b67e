"""When each layer of a run trains with 2:4 sparsity, and which layers must stay dense.

    controller = SparsityController(model, Sparsity24(warmup_steps=0.1), total=2400)
    controller.step(n)                     before step n: sets the mode of every Squared-ReLU network
    controller.stats()                     the newest figures by layer; `state_dict()` is JSON and belongs in the checkpoint

The last dense step before the switch and every 50th step after it are watched. A layer that would lose more than
`max_dropped` of its activation mass is dense from then on (arXiv 2503.16672 reports no loss; this is our safeguard).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.nn.ffn import SquaredReLUFFN
from tenfold.nn.sparse24 import Dropped, Sparsity24

WATCH_EVERY = 50  # steps


@dataclass(frozen=True)
class LayerStats:
    """Shares of one layer at step `step`; `refused` says why it stays dense, and is empty where 2:4 is safe."""

    step: int
    zeros: float
    features: float
    tokens: float
    permuted: float
    split: float
    refused: str = ""


class SparsityController:
    """`mean` averages a tensor over the ranks of a run, so that all decide alike."""

    def __init__(
        self,
        model: nn.Module,
        sparsity: Sparsity24,
        total: int,
        mean: Callable[[Tensor], Tensor] = lambda shares: shares,
    ) -> None:
        self.layers = sparse_layers(model)
        self.sparsity, self.total, self.mean = sparsity, total, mean
        for layer in self.layers.values():
            layer.sparsity = sparsity
        self._stats: dict[str, LayerStats] = {}
        self._refused: dict[str, str] = {}
        self._next = 0  # the step that is prepared

    def step(self, step: int) -> None:
        """Takes the figures of the step before, and prepares step `step` (0-based)."""
        self._next = step
        self._collect(step - 1)
        sparse = self.sparsity.sparse_at(step, self.total)
        watch = sparse and step % WATCH_EVERY == 0
        watch = watch or (not sparse and self.sparsity.sparse_at(step + 1, self.total))
        for name, layer in self.layers.items():
            layer.mode = "sparse24" if sparse and name not in self._refused else "dense"
            layer.watched = [] if watch else None

    def stats(self) -> dict[str, LayerStats]:
        return dict(self._stats)

    def _collect(self, step: int) -> None:
        if not any(layer.watched for layer in self.layers.values()):
            return
        for name, layer in self.layers.items():
            shares = self.mean(torch.stack([torch.stack(found) for found in layer.watched or []]).mean(0)).tolist()
            dropped = shares[Dropped._fields.index("features")]
            if dropped > self.sparsity.max_dropped:
                self._refused.setdefault(
                    name,
                    f"2:4 would drop {dropped:.3f} of its mass at step {step}; allowed {self.sparsity.max_dropped}",
                )
            self._stats[name] = LayerStats(step, *shares, refused=self._refused.get(name, ""))

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self._next,
            "stats": {name: asdict(s) for name, s in self._stats.items()},
            "refused": dict(self._refused),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the decisions, and prepares the step that was next."""
        self._stats = {name: LayerStats(**values) for name, values in state["stats"].items()}
        self._refused = dict(state["refused"])
        for layer in self.layers.values():
            layer.watched = None
        self.step(state["step"])


def sparse_layers(model: nn.Module) -> dict[str, SquaredReLUFFN]:
    """The networks of a model that can be sparse, by name."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, SquaredReLUFFN)}
    return {name: module for name, module in found.items() if module.sparsity is not None}

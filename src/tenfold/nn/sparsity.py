"""When each squared-ReLU network of a model is dense and when it is 2:4 sparse, and which of them had better stay dense.

    controller = SparsityController(model, total_steps=10_000)
    controller.step(step)            before every training step: sets the modes; a layer's own zeros decide at the switch
    controller.stats()               per layer: mode, zeros, dropped mass
    controller.state_dict()          plain numbers; a resumed run goes on with the same bits

A window of steps before the switch (and every window after it) measures in each layer the share of activation mass that
its 2:4 forward loses. A layer above `max_dropped` stays dense from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.nn.ffn import SquaredReluFFN

WINDOW = 20  # steps over which a layer is judged


class SparsityController:
    """Of the networks in `model` that have a 2:4 configuration. `mean` averages a tensor over data-parallel ranks, so that
    all of them decide alike. Warm-up and cool-down that leave no step in between are a run without sparsity."""

    def __init__(self, model: nn.Module, total_steps: int, mean: Callable[[Tensor], Tensor] | None = None) -> None:
        self.layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, SquaredReluFFN) and module.sparsity is not None
        }
        self.total, self.mean = total_steps, mean
        self.refused: dict[str, float] = {}  # layer -> the share it would have lost
        self.seen: dict[str, tuple[float, float]] = {}  # layer -> (zeros, dropped) of its last window

    def sparse_at(self, layer: SquaredReluFFN, step: int) -> bool:
        """Whether step `step` (0-based) is between warm-up and cool-down."""
        config = layer.sparsity
        assert config is not None
        return config.warmup_steps <= step < self.total - config.cooldown_steps

    def step(self, step: int) -> None:
        """Prepares the step `step`."""
        for name, layer in self.layers.items():
            assert layer.sparsity is not None
            begin = layer.sparsity.warmup_steps
            # Windows are counted from the switch, so that one ends exactly there.
            if layer.meter is not None and (step - begin) % WINDOW == 0:
                self._judge(name, layer)
            watched = step >= begin - WINDOW and name not in self.refused and step < self.total
            if watched and layer.meter is None:
                layer.meter = torch.zeros(3, device=layer.up.weight.device)
            layer.mode = "sparse24" if self.sparse_at(layer, step) and name not in self.refused else "dense"

    def _judge(self, name: str, layer: SquaredReluFFN) -> None:
        assert layer.meter is not None
        assert layer.sparsity is not None
        zeros, dropped, calls = (self.mean(layer.meter) if self.mean else layer.meter).tolist()
        layer.meter = None
        if not calls:
            return
        self.seen[name] = (zeros / calls, dropped / calls)
        if dropped / calls > layer.sparsity.max_dropped:
            self.refused[name] = dropped / calls

    def stats(self) -> list[dict[str, Any]]:
        """A row per layer; zeros and dropped mass are of the last whole window, None before the first."""
        rows = []
        for name, layer in self.layers.items():
            zeros, dropped = self.seen.get(name, (None, None))
            why = f"dropped {self.refused[name]:.3f} of its activation mass" if name in self.refused else ""
            rows.append({"layer": name, "mode": layer.mode, "zeros": zeros, "dropped": dropped, "refused": why})
        return rows

    def state_dict(self) -> dict[str, Any]:
        meters = {name: layer.meter.tolist() for name, layer in self.layers.items() if layer.meter is not None}
        return {"refused": dict(self.refused), "seen": {n: list(v) for n, v in self.seen.items()}, "meters": meters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.refused = dict(state["refused"])
        self.seen = {name: (zeros, dropped) for name, (zeros, dropped) in state["seen"].items()}
        for name, layer in self.layers.items():
            meter = state["meters"].get(name)
            layer.meter = None if meter is None else torch.tensor(meter, device=layer.up.weight.device)

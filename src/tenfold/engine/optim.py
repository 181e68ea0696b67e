"""AdamW with parameter groups, gradient norms that know shards and row gradients, and the average of weights.

Parameters with row gradients (engine/row_gradients.py) get RowAdamW, all others AdamW.

    optimizers = [PhaseOptimizer(model, task, phase, config) for phase in task.phases]
    optimizers[0].set_rates(step, total)
    norm = optimizers[0].clip(place)          # finite or not; nothing is scaled when it is not
    optimizers[0].step()

AdamW: arXiv 1711.05101. Layer-wise decay: a block nearer to the input learns slower (arXiv 2106.08254, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tenfold.engine.parallel import Place
from tenfold.engine.row_adamw import RowAdamW
from tenfold.engine.row_gradients import row_tables, stored_values
from tenfold.engine.schedule import OptimConfig
from tenfold.engine.task import Phase, Task, unwrap
from tenfold.errors import UsageError


class PhaseOptimizer:
    """The parameters of one phase, grouped by (rate multiplier, decay multiplier), and their AdamW."""

    def __init__(self, model: nn.Module, task: Task, phase: Phase, config: OptimConfig) -> None:
        self.phase, self.config = phase, phase.optim or config
        self.names: dict[nn.Parameter, str] = {}
        self.tables = row_tables(unwrap(model))
        groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
        for name, parameter in unwrap(model).named_parameters():
            if not parameter.requires_grad or not name.startswith(phase.prefixes):
                continue
            self.names[parameter] = name
            rate, decay = task.parameter_scale(name, parameter)
            depth = task.parameter_depth(name)
            if depth is not None:
                rate *= self.config.layer_decay ** (depth[1] - depth[0])
            groups.setdefault((parameter in self.tables, rate, decay), []).append(parameter)
        if not groups:
            raise UsageError(f"phase {phase.name!r} trains no parameter: none starts with {phase.prefixes}.")
        c = self.config
        parts: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        for (rows, rate, decay), p in groups.items():
            parts[rows].append({"params": p, "rate": rate, "decay": decay})
        nothing = [{"params": [], "rate": 1.0, "decay": 1.0}]  # a phase of tables alone, or without any
        self.optimizer = torch.optim.AdamW(
            parts[False] or nothing, lr=c.lr, betas=c.betas, eps=c.eps, weight_decay=0.0, fused=True
        )
        self.rows = RowAdamW(parts[True] or nothing, lr=c.lr, betas=c.betas, eps=c.eps)
        modules: dict[str, list[nn.Parameter]] = {}
        for parameter, name in self.names.items():
            modules.setdefault(task.clip_group(name) if self.config.clip_per_module else "", []).append(parameter)
        self.clip_groups = list(modules.values())

    def set_rates(
        self, step: int, total: int, *, lr: float | None = None, decay: float | None = None
    ) -> tuple[float, float]:
        """Sets the rates of step `step` from the schedules, or those given; returns (learning rate, weight decay)."""
        c = self.config
        lr = c.lr * c.schedule.at(step, total) if lr is None else lr
        if decay is None:
            decay = c.weight_decay
            if c.weight_decay_end is not None:  # half a cosine from the first to the last step
                progress = 0.5 - 0.5 * math.cos(math.pi * step / max(1, total - 1))
                decay += (c.weight_decay_end - decay) * progress
        for group in (*self.optimizer.param_groups, *self.rows.param_groups):
            group["lr"], group["weight_decay"] = lr * group["rate"], decay * group["decay"]
        return lr, decay

    def clip(self, place: Place) -> float:
        """Scales gradients to `config.clip` and returns the norm of all of them. A norm that is not finite is returned
        as it is, and no gradient is touched: the caller stops before the optimizer step."""
        squares = torch.stack([self._square(group, place) for group in self.clip_groups])
        norms = squares.sqrt().tolist()
        total = math.sqrt(sum(n * n for n in norms))
        if not math.isfinite(total) or self.config.clip is None:
            return total
        for group, norm in zip(self.clip_groups, norms):
            if norm > self.config.clip:
                torch._foreach_mul_(list(_values(group)), self.config.clip / (norm + 1e-6))
        return total

    def _square(self, parameters: list[nn.Parameter], place: Place) -> Tensor:
        """Sum of squares over all entries, in fp64. Where some are split over the ranks, every rank's part is added up,
        and what several ranks hold counts as a share on each."""
        split = any(isinstance(p.grad, DTensor) or self._ranks(p) > 1 for p in parameters)
        square = torch.zeros((), dtype=torch.float64, device=place.device)
        shares: dict[float, list[Tensor]] = {}
        for parameter in parameters:
            share = 1.0
            if split and not isinstance(parameter.grad, DTensor):
                share = self._ranks(parameter) / place.world
            shares.setdefault(share, []).extend(value for value in _values([parameter]) if value.numel())
        for share, values in shares.items():
            if values:
                square += torch.stack(torch._foreach_norm(values)).double().square().sum() * share
        if split:
            dist.all_reduce(square)
        return square

    def _ranks(self, parameter: nn.Parameter) -> int:
        """Over how many ranks a table is split."""
        return self.tables[parameter].split if parameter in self.tables else 1

    def step(self) -> None:
        self.optimizer.step()
        self.rows.step()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.rows.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's state by parameter name, `NAME.exp_avg` and so on; step counts as one-element vectors."""
        state = {}
        for parameter, name in self.names.items():
            if parameter in self.tables:
                for key, value in self.rows.state.get(parameter, {}).items():
                    state[f"{name}.{key}"] = self.tables[parameter].placed(value)
                continue
            for key, value in self.optimizer.state.get(parameter, {}).items():
                state[f"{name}.{key}"] = value.reshape(1) if value.ndim == 0 else value
        return state

    def allocate(self, saved: Iterable[str]) -> None:
        """Makes empty state for the entries named in `saved`, so that a checkpoint can be read into `tensors()`.
        A parameter that never got a gradient has no state, before and after."""
        wanted = {name.rpartition(".")[0] for name in saved}
        for parameter, name in self.names.items():
            if name in wanted and parameter in self.tables:
                self.rows.allocate(parameter)
            elif name in wanted:
                self.optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


def _values(parameters: Iterable[nn.Parameter]) -> Iterator[Tensor]:
    """The stored values of every gradient."""
    for parameter in parameters:
        values = stored_values(parameter)
        if values is not None:
            yield values


class WeightAverage:
    """Exponential moving average of the trainable parameters; buffers are taken as they are (`trainer.ema`). Raises
    UsageError for a model whose tables are split over ranks."""

    def __init__(self, model: nn.Module, momentum: float) -> None:
        if any(table.split > 1 for table in row_tables(unwrap(model)).values()):
            raise UsageError("trainer.ema does not go with a table that is split over ranks: leave out one of the two.")
        self.momentum = momentum
        self.source = {n: p for n, p in unwrap(model).named_parameters() if p.requires_grad}
        self.average = {n: p.detach().clone() for n, p in self.source.items()}

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(list(self.average.values()), list(self.source.values()), 1.0 - self.momentum)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model holds the averaged weights during the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.source.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(kept)

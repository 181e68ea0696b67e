"""The training loop: one for every system, on one device or many.

    trainer = Trainer(task, recipe, out=Path("runs/a"), name="dinov3-mini")
    metrics = trainer.fit()                       # trains, checkpoints, validates, delivers; returns the last figures

The order within a step: rates and live values from the schedules, batches, and per phase forward, backward, agreement
of the ranks on losses and signals, clipping, the guard, the optimizer; then the task's `after_step`. A signal is answered
after the step. Every random number comes from torch's generator, which is in the checkpoint, so a resumed run has the
bits of one that never stopped.

A run folder: config.json, metrics.jsonl, step-N/, final.safetensors, report.{html,md,json}.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tenfold.config import config_hash
from tenfold.data.lock import held
from tenfold.engine.checkpoint import CheckpointStore, random_state
from tenfold.engine.guard import capture, move, whole
from tenfold.engine.heartbeat import Heartbeat
from tenfold.engine.metrics import Metrics
from tenfold.engine.optim import PhaseOptimizer, WeightAverage
from tenfold.engine.parallel import gradient_sync, join, wrap
from tenfold.engine.recipe import Recipe
from tenfold.engine.row_gradients import average_rows, row_tables
from tenfold.engine.run_folder import run_report, write_config, write_weights
from tenfold.engine.signals import StopRequested, Watch
from tenfold.engine.step_memory import autocast_type, recompute
from tenfold.engine.task import Phase, Shard, Task, unwrap
from tenfold.errors import LostRank, Preempted


class Trainer:
    """Trains `task` as `recipe.trainer` and `recipe.optim` say, into the folder `out`."""

    def __init__(self, task: Task, recipe: Recipe, out: Path, *, name: str = "", resume: bool = False) -> None:
        self.task, self.recipe, self.out, self.name, self.resume = task, recipe, Path(out), name, resume
        self.config = recipe.trainer
        self.step = 0  # steps done
        self.validated = 0  # the step of the last validation
        self.scores: dict[str, float] = {}
        self.losses: dict[str, float] = {}

    def fit(self) -> dict[str, Any]:
        """Runs to `trainer.steps`. Raises Preempted after a signal, NonFiniteError, DataError, StorageError, LostRank:
        in each case the last checkpoint is whole."""
        self.place = join(self.config.device)
        lock = held(self.out / ".lock", "run folder") if self.place.first else nullcontext()
        heartbeat = Heartbeat(self.place) if self.place.world > 1 else None
        lost = False
        try:
            with lock, Watch() as self.watch, warnings.catch_warnings():
                # Blocks hand on views, and nothing here writes into them.
                warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
                return self._run()
        except RuntimeError as error:
            # A collective failed because its other side is gone; any other RuntimeError is a defect and stays one.
            missing = heartbeat.lost() if heartbeat else []
            if not missing:
                raise
            lost = True
            raise LostRank(
                f"rank {self.place.rank}: lost rank {', '.join(map(str, missing))} of {self.place.world} at step "
                f"{self.step}. Continue from the last checkpoint: tenfold train --resume {self.out}"
            ) from error
        finally:
            if heartbeat:
                heartbeat.stop()
            if not lost:
                self.place.leave()

    def _run(self) -> dict[str, Any]:
        try:
            with self.watch.interruptible():
                self._prepare()
        except StopRequested as signal:
            raise Preempted(f"stopped by {signal} before the first step; nothing was lost.") from None
        try:
            if self._validation_due() and self.validated != self.step:  # the run was stopped before it
                self._validate()
            batches = iter(self.batches)
            while self.step < self.config.steps:
                stop = self._step(batches)
                self.step += 1
                self._record()
                if stop:
                    self._preempt(stop)
                if self._due(self.config.checkpoint_every):
                    self._save()
                if self._validation_due():
                    self._validate()
            if self._newest != self.step:
                self._save()
            return self._finish()
        finally:
            if self.metrics:
                self.metrics.close()

    # ------------------------------------------------------------------------------------------------- preparation

    def _prepare(self) -> None:
        c, place = self.config, self.place
        if c.threads:
            torch.set_num_threads(c.threads)
        self.autocast = autocast_type(c.precision, place.device)
        self.task.ranks = place.collectives()
        self._set_live_values()
        torch.manual_seed(c.seed)
        with self.task.building(place):
            model = self.task.build().to(place.device).train()
        torch.manual_seed(c.seed)  # what a step draws does not depend on how much `build` drew
        layers, several = self.task.layers(model), len(self.task.phases) > 1
        if c.activation_checkpointing:
            recompute(layers)
        self.task.parallelize(model, place)
        self.row_tables = row_tables(model)
        self.model = wrap(model, place, c.parallel, layers=layers, apart=self.row_tables, several_phases=several)
        self.optimizers = [PhaseOptimizer(self.model, self.task, p, self.recipe.optim) for p in self.task.phases]
        self.average = WeightAverage(self.model, c.ema) if c.ema is not None else None
        self.batches = self.task.batches(Shard(place.rank, place.world))
        self.store = CheckpointStore(self.out, place, config_hash(self.recipe), c.keep)
        self._newest = -1
        if place.first and not self.resume:
            write_config(self.out, self.name, self.recipe)
        self.store.clear_leftovers()
        if self.resume:
            self._restore()
        self.metrics = Metrics(self.out, c.steps, c.tensorboard) if place.first else None
        if self.metrics:
            self.metrics.keep_until(self.step)

    def tensors(self) -> dict[str, Tensor]:
        """Everything in a checkpoint that is a tensor, by name."""
        state = {f"model.{n}": v for n, v in unwrap(self.model).state_dict().items() if isinstance(v, Tensor)}
        for optimizer in self.optimizers:
            state |= {f"optim.{optimizer.phase.name}.{n}": v for n, v in optimizer.tensors().items()}
        if self.average:
            state |= {f"average.{n}": v for n, v in self.average.average.items()}
        return {name: value.reshape(1) if value.ndim == 0 else value for name, value in state.items()}

    def _save(self) -> None:
        state = {
            "batches": self.batches.state_dict(),
            "task": self.task.state_dict(),
            "validated": self.validated,
            "scores": self.scores,
        }
        self.store.save(self.step, self.tensors(), state)
        self._newest = self.step

    def _restore(self) -> None:
        found = self.store.newest()
        if found is None:
            return
        step, path = found
        saved = self.store.wanted(path)
        for optimizer in self.optimizers:
            prefix = f"optim.{optimizer.phase.name}."
            optimizer.allocate(n.removeprefix(prefix) for n in saved if n.startswith(prefix))
        state = self.store.load(path, self.tensors())
        self.batches.load_state_dict(state["batches"])
        self.task.load_state_dict(state["task"])
        self.step = self._newest = step
        self.validated, self.scores = state["validated"], state["scores"]

    # ------------------------------------------------------------------------------------------------------ a step

    def _set_live_values(self) -> None:
        for name, schedule in self.task.schedules.items():
            self.task.hparams[name] = schedule.at(self.step, self.config.steps)

    def _step(self, batches: Iterator[Any]) -> str:
        """One step; returns the signal that asked to stop, or an empty word."""
        started = perf_counter()
        self._set_live_values()
        random = random_state(self.place)
        parts = [move(next(batches), self.place.device) for _ in range(self.config.accumulation)]
        several = len(self.optimizers) > 1
        stop = False
        self.losses = {}
        for optimizer in self.optimizers:
            lr, decay = optimizer.set_rates(self.step, self.config.steps)
            totals = self._gradients(parts, optimizer.phase)
            self.task.after_backward(self.model, optimizer.phase, self.step)
            losses, stop = self._agree(totals)
            norm = optimizer.clip(self.place)
            if not all(map(math.isfinite, (*losses.values(), norm))):
                where = {"task": self.task, "phase": optimizer.phase, "step": self.step, "autocast": self.autocast}
                raise capture(self.out, self.place, self.model, random=random, batches=parts, losses=losses, **where)
            optimizer.step()
            head = f"{optimizer.phase.name}/" if several else ""
            figures = {**losses, "grad_norm": norm, "lr": lr, "weight_decay": decay}
            self.losses |= {head + name: value for name, value in figures.items()}
        self.task.after_step(self.model, self.step)
        if self.average:
            self.average.update()
        self.losses["seconds"] = perf_counter() - started
        return (self.watch.requested or "a signal to another rank") if stop else ""

    def _gradients(self, parts: list[Any], phase: Phase) -> dict[str, Tensor]:
        """Backward of every part of the global batch; returns the mean losses of this rank."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        totals: dict[str, Tensor] = {}
        for i, part in enumerate(parts):
            with gradient_sync(self.model, self.place, enabled=i == len(parts) - 1):
                with torch.autocast(self.place.device.type, self.autocast, enabled=self.autocast is not None):
                    losses = self.task.training_step(self.model, part, phase)
                assert "loss" in losses, f"{type(self.task).__name__}.training_step returned no 'loss'"
                (losses["loss"] / len(parts)).backward()
            for name, value in losses.items():
                value = value.detach().float() / len(parts)
                totals[name] = totals[name] + value if name in totals else value
        for parameter, table in self.row_tables.items():
            average_rows(parameter, table, self.place)
        return totals

    def _agree(self, totals: dict[str, Tensor]) -> tuple[dict[str, float], bool]:
        """Losses averaged over the ranks, and whether a signal reached any of them: one small reduction."""
        flag = float(self.watch.requested is not None)
        values = torch.stack([*totals.values(), torch.tensor(flag, device=self.place.device)])
        if self.place.world > 1:
            dist.all_reduce(values)
            values /= self.place.world
        *losses, flag = values.tolist()
        return dict(zip(totals, losses)), flag > 0

    # ------------------------------------------------------------------------------------------- between the steps

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0 and self.step < self.config.steps

    def _validation_due(self) -> bool:
        return self.step > 0 and self._due(self.config.validate_every)

    def _record(self) -> None:
        if self.metrics:
            if self.step % self.config.log_every == 0 or self.step in (1, self.config.steps):
                self.metrics.log(self.step, self.losses)
            first = next(name for name in self.losses if name.endswith("loss"))
            self.metrics.advance(self.step, loss=self.losses[first])

    def _preempt(self, signal: str) -> None:
        self._save()
        raise Preempted(
            f"stopped by {signal} after step {self.step}; the state is saved. Continue: tenfold train --resume {self.out}"
        )

    def _validate(self) -> None:
        self.model.eval()
        try:
            with (
                self.watch.interruptible(),
                torch.random.fork_rng(),
                self.average.swapped() if self.average else nullcontext(),
                torch.no_grad(),
            ):
                self.scores = self.task.validate(self.model)
        except StopRequested as signal:
            self._preempt(str(signal))
        finally:
            self.model.train()
        self.validated = self.step
        if self.metrics and self.scores:
            self.metrics.log(self.step, self.scores)
            words = "  ".join(f"{name} {value:.4g}" for name, value in self.scores.items())
            self.metrics.say(f"step {self.step}  {words}")

    def _finish(self) -> dict[str, Any]:
        if self.validated != self.step:
            self._validate()
        with self.average.swapped() if self.average else nullcontext():
            delivered = {"final": (self.task.deliver(self.model), self.task.card())}
            for name, more in self.task.deliver_more(self.model).items():
                delivered[f"final-{name}"] = more
            files = {n: ({k: whole(v) for k, v in tensors.items()}, card) for n, (tensors, card) in delivered.items()}
            # Inside the block: the tensors are the model's own, and behind it they are no longer the average.
            if self.place.first:
                write_weights(self.out, files)
        if self.place.first:
            run_report(self.out, self.name or type(self.task).__name__, self.scores).write(self.out)
        self.place.barrier()
        return {"steps": self.step, **{k: v for k, v in self.losses.items() if k.endswith("loss")}, **self.scores}

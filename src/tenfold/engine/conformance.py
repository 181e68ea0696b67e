"""What the trainer relies on, checked for any task, as scikit-learn's `check_estimator` does for estimators.

    check_task(dinov3_mini())          raises AssertionError with one readable line at the first promise that is broken

Run it on a small recipe: it builds the model twice and takes a few batches and one step of each phase.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.engine.recipe import Recipe
from tenfold.engine.task import Shard, Task
from tenfold.kernels.bag import coalesced

LISTED = 8  # names in a message


def check_task(recipe: Recipe, without_gradient: Sequence[str] = ()) -> None:
    """Raises AssertionError unless the recipe's task keeps the promises of engine/task.py.

    without_gradient: beginnings of the names of parameters that may stay without a gradient in the first step (a token
    that only masked batches use). A beginning that fits no parameter is an error too.
    """
    with torch.random.fork_rng(devices=[]):
        for check in CHECKS:
            check(recipe)
        check_training_step(recipe, without_gradient)


def check_hparams(recipe: Recipe) -> None:
    """Live values are finite numbers under names, and schedules give finite numbers in runs of any length."""
    task = recipe.make_task()
    assert isinstance(task, Task), f"make_task() returned a {type(task).__name__}, not a Task"
    assert isinstance(getattr(task, "hparams", None), dict), f"{_name(task)}.__init__ does not call super().__init__()"
    for name, value in task.hparams.items():
        assert _is_finite(value), f"{_name(task)}.hparams[{name!r}] = {value!r} is not a finite number"
    for (name, schedule), total in itertools.product(task.schedules.items(), (1, 2, 10, recipe.trainer.steps)):
        for step in {0, total // 3, total // 2, total - 1}:
            value = schedule.at(step, total)
            assert _is_finite(value), f"{_name(task)}.schedules[{name!r}] is {value!r} at step {step} of {total}"


def check_build(recipe: Recipe) -> None:
    """The same seed builds the same bits, so that every rank starts from the same weights."""
    (task, first), (_, second) = _build(recipe), _build(recipe)
    assert isinstance(first, nn.Module), f"{_name(task)}.build() returned a {type(first).__name__}, not a Module"
    one, two = first.state_dict(), second.state_dict()
    assert list(one) == list(two), (
        f"{_name(task)}.build() gives other names the second time: {_some(set(one) ^ set(two))}"
    )
    differ = [name for name in one if not _same(one[name], two[name])]
    assert not differ, f"{_name(task)}.build() is not the same twice with one seed: {_some(differ)}"


def check_batches_resume(recipe: Recipe) -> None:
    """A stream restored from its state continues with exactly the batches that the first one would have given."""
    task, _ = _build(recipe)
    batches = task.batches(Shard())
    stream = iter(batches)
    consumed = [next(stream), next(stream)]
    state = copy.deepcopy(batches.state_dict())
    _seed(1)
    expected = [next(stream), next(stream)]
    again, _ = _build(recipe)
    restored = again.batches(Shard())
    restored.load_state_dict(state)
    _seed(1)
    resumed = iter(restored)
    for number, batch in enumerate(expected):
        assert _same(batch, next(resumed)), (
            f"{_name(task)}.batches: batch {number} after load_state_dict is not the one that came after state_dict"
        )
    assert not _same(consumed[0], consumed[1]), f"{_name(task)}.batches gives the same batch twice: it does not move on"


def check_shards(recipe: Recipe) -> None:
    """The samples of two ranks' batches together are the samples of one process's batch."""
    task, _ = _build(recipe)
    streams = [task.batches(Shard()), task.batches(Shard(0, 2)), task.batches(Shard(1, 2))]
    seeded = []
    for stream in streams:
        _seed(1)
        seeded.append(next(iter(stream)))
    whole, *halves = (_leaves(batch) for batch in seeded)
    assert [len(half) for half in halves] == [len(whole)] * 2, (
        f"{_name(task)}.batches has another structure on two ranks"
    )
    groups: dict[int, list[tuple[list[bytes], list[bytes]]]] = {}
    for (place, one), *parts in zip(whole.items(), *(half.values() for half in halves)):
        if not isinstance(one, Tensor) or one.ndim == 0:
            continue
        axes = [axis for axis in range(one.ndim) if _joins(one, parts, axis)]
        assert axes, (
            f"{_name(task)}.batches: {place or 'the batch'} is {tuple(one.shape)} in one process and "
            f"{' + '.join(str(tuple(part.shape)) for part in parts)} on two ranks, which do not join to it"
        )
        joined = torch.cat(parts, axes[0])
        groups.setdefault(one.shape[axes[0]], []).append((_rows(one, axes[0]), _rows(joined, axes[0])))
    assert groups, f"{_name(task)}.batches holds no tensor with a batch axis"
    for pairs in groups.values():  # leaves with as many rows describe the same samples
        one = sorted(b"".join(row) for row in zip(*(pair[0] for pair in pairs)))
        two = sorted(b"".join(row) for row in zip(*(pair[1] for pair in pairs)))
        assert one == two, f"{_name(task)}.batches: two ranks' samples are not those of the one-process batch"


def check_training_step(recipe: Recipe, without_gradient: Sequence[str] = ()) -> None:
    """Each phase has a finite scalar `loss` whose gradient reaches every parameter that the phase moves; every trainable
    parameter belongs to a phase."""
    task, model = _build(recipe)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trainable, f"{_name(task)}.build() has nothing to train"
    for beginning in without_gradient:
        assert any(name.startswith(beginning) for name in trainable), (
            f"without_gradient: {beginning!r} fits no parameter"
        )
    moved = {name for phase in task.phases for name in trainable if name.startswith(phase.prefixes)}
    assert moved == set(trainable), f"{_name(task)}.phases: no phase moves {_some(set(trainable) - moved)}"
    stream = iter(task.batches(Shard()))
    for phase in task.phases:
        model.zero_grad(set_to_none=True)
        losses = task.training_step(model, next(stream), phase)
        _check_losses(losses, f"{_name(task)}.training_step (phase {phase.name!r})")
        losses["loss"].backward()
        own = {name: p.grad for name, p in trainable.items() if name.startswith(phase.prefixes)}
        lost = [n for n, grad in own.items() if grad is None and not n.startswith(tuple(without_gradient))]
        assert not lost, f"{_name(task)}: in phase {phase.name!r} no gradient reaches {_some(lost)}"
        wild = [name for name, grad in own.items() if grad is not None and not _finite(grad)]
        assert not wild, f"{_name(task)}: in phase {phase.name!r} the gradient is not finite of {_some(wild)}"
    task.after_step(model, 0)


def check_deliver(recipe: Recipe) -> None:
    """The final weights are named, finite tensors, and delivering them does not change the model."""
    task, model = _build(recipe)
    before = copy.deepcopy(model.state_dict())
    weights = task.deliver(model)
    assert weights, f"{_name(task)}.deliver() gives nothing"
    for name, value in weights.items():
        assert isinstance(value, Tensor), f"{_name(task)}.deliver()[{name!r}] is a {type(value).__name__}, not a Tensor"
        assert _finite(value), f"{_name(task)}.deliver()[{name!r}] is not finite"
    assert _same(before, model.state_dict()), f"{_name(task)}.deliver() changes the model"


CHECKS: tuple[Callable[[Recipe], None], ...] = (
    check_hparams,
    check_build,
    check_batches_resume,
    check_shards,
    check_deliver,
)


def _build(recipe: Recipe) -> tuple[Task, nn.Module]:
    """A fresh task and its model, as the trainer makes them before the first step."""
    task = recipe.make_task()
    for name, schedule in task.schedules.items():
        task.hparams[name] = schedule.at(0, recipe.trainer.steps)
    _seed(recipe.trainer.seed)
    model = task.build()
    return task, model.train() if isinstance(model, nn.Module) else model


def _check_losses(losses: Any, where: str) -> None:
    assert isinstance(losses, dict), f"{where} returned a {type(losses).__name__}, not a dict"
    assert "loss" in losses, f"{where} returned no 'loss', only {_some(losses)}"
    for name, value in losses.items():
        scalar = isinstance(value, Tensor) and value.ndim == 0
        assert scalar, f"{where}: {name!r} is {getattr(value, 'shape', type(value).__name__)}, not a scalar tensor"
        assert _finite(value), f"{where}: {name!r} = {value.item()} is not finite"
    assert losses["loss"].requires_grad, f"{where}: 'loss' has no gradient"


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _leaves(value: Any, place: str = "") -> dict[str, Any]:
    """The parts of a batch by their place in it; arrays become tensors."""
    if isinstance(value, dict):
        items = [(f"{place}[{key!r}]", inner) for key, inner in value.items()]
    elif isinstance(value, (list, tuple)):
        items = [(f"{place}[{index}]", inner) for index, inner in enumerate(value)]
    else:
        return {place: torch.as_tensor(value) if isinstance(value, np.ndarray) else value}
    return {name: leaf for at, inner in items for name, leaf in _leaves(inner, at).items()}


def _same(a: Any, b: Any) -> bool:
    one, two = _leaves(a), _leaves(b)
    return one.keys() == two.keys() and all(_equal(one[place], two[place]) for place in one)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and _bytes(a) == _bytes(b)
    return type(a) is type(b) and bool(a == b)


def _joins(one: Tensor, parts: Sequence[Tensor], axis: int) -> bool:
    rest = one.shape[:axis] + one.shape[axis + 1 :]
    fit = all(part.ndim == one.ndim and part.shape[:axis] + part.shape[axis + 1 :] == rest for part in parts)
    return fit and sum(part.shape[axis] for part in parts) == one.shape[axis]


def _rows(value: Tensor, axis: int) -> list[bytes]:
    return [_bytes(row) for row in value.movedim(axis, 0)]


def _bytes(value: Tensor) -> bytes:
    """Bits, so that NaN equals itself and -0.0 is not 0.0."""
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _finite(value: Tensor) -> bool:
    value = coalesced(value)._values() if value.is_sparse else value
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _some(names: Any) -> str:
    ordered = sorted(map(str, names))
    more = f" and {len(ordered) - LISTED} more" if len(ordered) > LISTED else ""
    return ", ".join(ordered[:LISTED]) + more


def _name(task: Task) -> str:
    return type(task).__name__

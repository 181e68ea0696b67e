"""The guard against non-finite numbers: stop before the optimizer moves, and keep what is needed to see it again.

    capture(folder, ...)        run_folder/nonfinite-step-N/rank-R.pt: weights, random state, batches and live values of the
                                step, as they were before it
    replay(folder)              runs that step again and says which losses and gradients are not finite

A capture holds tensors and plain values alone and is read with `weights_only=True`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tenfold.data.atomic import aside, write_atomic
from tenfold.engine.checkpoint import set_random_state
from tenfold.engine.parallel import Place, join
from tenfold.engine.row_gradients import stored_values
from tenfold.engine.task import Phase, Task, unwrap
from tenfold.errors import CheckpointError, NonFiniteError


def nonfinite_gradients(model: nn.Module) -> list[str]:
    """Names of the parameters whose gradient holds NaN or Inf (this rank's part of it)."""
    names = []
    for name, parameter in unwrap(model).named_parameters():
        values = stored_values(parameter)
        if values is not None and not bool(values.isfinite().all()):
            names.append(name)
    return names


def whole(value: Tensor) -> Tensor:
    """A sharded tensor put together (called on every rank); any other as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def capture(
    folder: Path,
    place: Place,
    model: nn.Module,
    *,
    task: Task,
    phase: Phase,
    step: int,
    random: Mapping[str, Tensor],
    batches: Sequence[Any],
    losses: Mapping[str, float],
    autocast: torch.dtype | None,
) -> NonFiniteError:
    """Writes this rank's part of the capture of step `step`; rank 0 adds `summary.json`. Called on every rank; returns the
    error that ends the run when all have written."""
    gradients = nonfinite_gradients(model)
    target = folder / f"nonfinite-step-{step}"
    weights = {name: whole(value).cpu() for name, value in unwrap(model).state_dict().items()}
    content = {
        "model": weights,
        "random": dict(random),
        "batches": list(batches),
        "hparams": dict(task.hparams),
        "task": json.dumps(task.state_dict()),
        "phase": phase.name,
        "world": place.world,
        "step": step,
        "bf16": autocast is not None,
    }
    with aside(target / f"rank-{place.rank}.pt") as temporary:
        torch.save(content, temporary)
    if place.first:
        summary = {"step": step, "phase": phase.name, "losses": dict(losses), "gradients": gradients}
        write_atomic(target / "summary.json", json.dumps(summary, indent=2).encode())
    place.barrier()
    return _stopped(target, step, losses, gradients)


def replay(folder: Path, task: Task, place: Place | None = None) -> dict[str, Any]:
    """Runs the captured step again, in the run's precision and up to what the optimizer would have seen. Returns {"losses":
    ..., "gradients": [names not finite]}.

    `task` is the run's own (the command line builds it from the run's configuration). Runs on as many ranks as the
    capture was made on.
    """
    place = place or join("cpu")
    path = folder / f"rank-{place.rank}.pt"
    try:
        content = torch.load(path, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a capture: it has no {path.name}.") from None
    except Exception as error:  # torch raises several kinds for a damaged or hostile file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} cannot be read: {reason}") from None
    if content["world"] != place.world:
        raise CheckpointError(
            f"{folder} was captured on {content['world']} ranks and this is {place.world}. "
            f"Type: torchrun --nproc-per-node {content['world']} -m tenfold train --replay {folder}"
        )
    task.ranks = place.collectives()
    task.hparams.update(content["hparams"])
    model = task.build().to(place.device).train()
    model.load_state_dict(content["model"])
    task.load_state_dict(json.loads(content["task"]))
    phase = next(p for p in task.phases if p.name == content["phase"])
    set_random_state(content["random"], place)
    totals: dict[str, float] = {}
    for batch in content["batches"]:
        with torch.autocast(place.device.type, torch.bfloat16, enabled=content["bf16"]):
            losses = task.training_step(model, move(batch, place.device), phase)
        (losses["loss"] / len(content["batches"])).backward()
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + float(value.detach()) / len(content["batches"])
    task.after_backward(model, phase, content["step"])
    return {"losses": totals, "gradients": nonfinite_gradients(model)}


def move(batch: Any, device: torch.device) -> Any:
    """Tensors of a nested batch onto the device; everything else as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: move(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(move(value, device) for value in batch)
    return batch


def _stopped(target: Path, step: int, losses: Mapping[str, float], gradients: Sequence[str]) -> NonFiniteError:
    """The error that ends the run, naming what is not finite and how to see it again."""
    bad = [name for name, value in losses.items() if value != value or value in (float("inf"), float("-inf"))]
    what = f"the loss ({', '.join(bad)})" if bad else f"{len(gradients)} gradients ({', '.join(gradients[:3])}, ...)"
    return NonFiniteError(
        f"step {step}: {what} is not finite. The weights were not changed. See the step again with "
        f"tenfold train --replay {target}; continue from the last checkpoint with a smaller --optim.lr, or in fp32."
    )

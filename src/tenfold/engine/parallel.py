"""Data parallelism under `torchrun`: who this process is, collectives that losses may use, and wrapping the model.

One process needs no group: `Collectives()` is the identity, so a loss is written once and is right on any number of
ranks. The sums and gathers are differentiable: with gradients averaged over ranks (what DDP and FSDP2 do), a loss that
sees the global batch through them has the gradient of the same loss in one process.

    place = join()                        rank, world and device from torchrun's environment; starts the process group
    ranks = place.collectives()
    model = wrap(model, place, "ddp", layers=task.layers(model))
    place.leave()
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tenfold.kernels.machine import choose_device

TIMEOUT = timedelta(seconds=int(os.environ.get("TENFOLD_COLLECTIVE_TIMEOUT", "600")))


class Collectives:
    """What an objective may ask of the other ranks. This base class is one process alone: every call is the identity."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        """The sum over ranks, on every rank. Differentiable."""
        return value

    def maximum(self, value: Tensor) -> Tensor:
        """The largest value over ranks, element by element. Not differentiable."""
        return value.detach()

    def all_gather(self, value: Tensor) -> Tensor:
        """The ranks' tensors (equal shapes) joined along the first axis, in rank order. Differentiable."""
        return value


class GroupCollectives(Collectives):
    """The same over a torch process group (the default group when none is given)."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(dist.get_rank(group), dist.get_world_size(group))
        self.group = group

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        return _Sum.apply(value, self.group)

    def maximum(self, value: Tensor) -> Tensor:
        result = value.detach().clone()
        dist.all_reduce(result, dist.ReduceOp.MAX, self.group)
        return result

    def all_gather(self, value: Tensor) -> Tensor:
        return _Gather.apply(value, self.group)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        result = value.clone()
        dist.all_reduce(result, group=group)
        return result

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group, ctx.rows = group, len(value)
        parts = [torch.empty_like(value) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, value.contiguous(), group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)  # gloo has no reduce-scatter
        start = dist.get_rank(ctx.group) * ctx.rows
        return total[start : start + ctx.rows], None


# The group that was left. Its destructor waits for gloo's threads, and these take the GIL to let go of a tensor that Python
# has dropped already. Through this list it runs with the GIL released; through DDP's reducer, which would else be the last
# to hold the group, it does not, and now and then a rank that was done never ended. Python's own end would be too late:
# a thread that asks for the GIL then is aborted.
_left: list[dist.ProcessGroup | None] = []
atexit.register(_left.clear)


@dataclass(frozen=True)
class Place:
    """This process among the ranks, and the device that it works on."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    def collectives(self) -> Collectives:
        return GroupCollectives() if self.world > 1 else Collectives()

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds on at least one rank."""
        if self.world == 1:
            return flag
        value = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value.item())

    def leave(self) -> None:
        """Ends the process group, if there is one."""
        if self.world > 1 and dist.is_initialized():
            _left[:] = [dist.group.WORLD]
            dist.destroy_process_group()


def join(device: Literal["auto", "cpu", "cuda"] = "auto") -> Place:
    """Reads torchrun's environment. Alone: no process group. Among ranks: gloo on CPU, NCCL on CUDA."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = choose_device(device, "trainer.device =", index=local)
    cuda = place.type == "cuda"
    if cuda:
        torch.cuda.set_device(place)
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    return Place(rank, world, place)


def wrap(
    model: nn.Module,
    place: Place,
    parallel: Literal["auto", "ddp", "fsdp"],
    *,
    layers: Iterable[nn.Module] = (),
    apart: Collection[nn.Parameter] = (),
    several_phases: bool = False,
) -> nn.Module:
    """The model for data parallelism. `auto` is DDP; FSDP2 shards parameters, gradients and optimizer state of each of
    `layers` and of the rest, and leaves the module's type and names as they are. With `several_phases` a backward may
    leave out parameters; otherwise each trainable one takes part in every step (freeze what does not). Parameters `apart`
    are left alone: their gradients are averaged by other means (engine/row_gradients.py)."""
    if place.world == 1:
        return model
    if parallel == "fsdp":
        return _shard(model, place, layers, set(apart))
    from torch.nn.parallel import DistributedDataParallel

    apart = set(apart)
    ignored = [name for name, parameter in model.named_parameters() if parameter in apart]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
    ids = [place.device.index] if place.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, find_unused_parameters=several_phases)


def _shard(model: nn.Module, place: Place, layers: Iterable[nn.Module], apart: set[nn.Parameter]) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(place.device.type, (place.world,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=apart)
    return model


@contextmanager
def gradient_sync(model: nn.Module, place: Place, enabled: bool) -> Iterator[None]:
    """A backward inside averages gradients over the ranks, or leaves them to a later one (gradient accumulation)."""
    if enabled or place.world == 1:
        yield
    elif isinstance(model, nn.parallel.DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        model.set_requires_gradient_sync(False)  # pyright: ignore (FSDP2 adds it)
        yield
        model.set_requires_gradient_sync(True)  # pyright: ignore


def gathered(tensor: Tensor, group: dist.ProcessGroup | None, ranks: int) -> Tensor:
    """The ranks' tensors (equal shapes) joined along the first axis, in rank order. Not differentiable."""
    parts = [torch.empty_like(tensor) for _ in range(ranks)]
    dist.all_gather(parts, tensor.contiguous(), group)
    return torch.cat(parts)

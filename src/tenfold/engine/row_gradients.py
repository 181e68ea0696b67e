"""Sparse row gradients: which parameters have them, their stored values, and their average over data-parallel ranks.

A large table of which a step reads few rows has a gradient that holds those rows alone (a sparse COO tensor). Neither DDP
nor FSDP2 reduces such gradients, and AdamW would move every row; so a module names these parameters, as `RowGradients`
says, and the engine treats them apart: `RowAdamW` moves them, and `average_rows` reduces them.

    tables = row_tables(model)                       {parameter: the module that names it}
    average_rows(parameter, table, place)            after the backward: what DDP and FSDP2 do for all other parameters
    values = stored_values(parameter)                rows of a row gradient, this rank's part of a sharded one
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tenfold.engine.parallel import Place, gathered
from tenfold.kernels.bag import coalesced, row_gradient


@runtime_checkable
class RowGradients(Protocol):
    """A module some of whose parameters, named in `row_gradients`, get sparse row gradients (nn/memory.py: RowTable).

    split: over how many ranks its columns are divided; 1 where every rank holds them all.
    replicas: the process group of the ranks that hold the same columns; None is every rank.
    placed: a tensor like one of the parameters, or like its optimizer state, as a checkpoint takes it.
    """

    row_gradients: tuple[str, ...]

    @property
    def split(self) -> int: ...
    @property
    def replicas(self) -> Any: ...
    def placed(self, tensor: Tensor) -> Tensor: ...


def row_tables(model: nn.Module) -> dict[nn.Parameter, RowGradients]:
    """Every parameter of `model` whose gradient is rows, and the module that names it."""
    tables = [module for module in model.modules() if isinstance(module, RowGradients)]
    return {getattr(table, name): table for table in tables for name in table.row_gradients}


def stored_values(parameter: nn.Parameter) -> Tensor | None:
    """The stored values of the gradient: of a row gradient every row once (the gradient is coalesced in place), of a
    sharded one this rank's part; None without a gradient."""
    gradient = parameter.grad
    if gradient is None:
        return None
    if gradient.is_sparse:
        parameter.grad = gradient = coalesced(gradient)
        return gradient._values()
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def average_rows(parameter: nn.Parameter, table: RowGradients, place: Place) -> None:
    """The row gradient of one process on the joined batch, in place of each rank's own: merged over the ranks that hold
    the same columns, divided by the number of all."""
    if place.world == 1 or parameter.grad is None:
        return
    group = table.replicas or dist.group.WORLD
    own = coalesced(parameter.grad)
    ids, rows = own._indices()[0], own._values()
    if dist.get_world_size(group) > 1:
        ids, rows = _merged(ids, rows, group)
    parameter.grad = torch.sparse_coo_tensor(
        ids[None], rows / place.world, own.shape, is_coalesced=True, check_invariants=False
    )


def _merged(ids: Tensor, rows: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """Rows of all ranks added up, in rank order, so that every rank gets the same bits."""
    ranks = dist.get_world_size(group)
    counts = gathered(torch.tensor([len(ids)], device=ids.device), group, ranks).tolist()
    longest = max(counts)
    padded = [torch.zeros(longest, *t.shape[1:], dtype=t.dtype, device=t.device) for t in (ids, rows)]
    for whole, part in zip(padded, (ids, rows)):
        whole[: len(part)] = part
    everyone = [gathered(whole, group, ranks).unflatten(0, (ranks, longest)) for whole in padded]
    ids, rows = (torch.cat([part[:count] for part, count in zip(whole, counts)]) for whole in everyone)
    return row_gradient(ids[:, None], rows.new_ones(len(ids), 1), rows)

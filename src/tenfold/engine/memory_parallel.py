"""Memory tables under data parallelism: whole on every rank, or split by width over a group of ranks.

    with own_columns(place, ranks):
        model = build()                              every rank makes its own columns alone
    split_tables(model, place, ranks)                the model's tables read through the group

A task whose tables are split derives from `SplitTables`, which does both in the trainer's hooks. Row gradients are then
averaged over the ranks that hold the same columns (engine/row_gradients.py).

A rank of a group of G holds D / G columns of every row. Forward: indices and weights of the group's tokens are gathered,
each rank sums its columns for all of them, and an all-to-all brings every token's columns home. Backward: the way back for
dY; the row gradients of a slice are then complete for the group; the gradient of a weight is a sum of parts over columns.
Traffic of a token: about 6 B (G - 1) + 2 D bytes each way in bf16 and int32 (Memory Layers at Scale, arXiv 2412.09764).

    T tokens of a rank   B rows read by a token   K rows   D width   G ranks of a group
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from tenfold.engine.parallel import GroupCollectives, Place, gathered
from tenfold.engine.row_gradients import row_tables
from tenfold.engine.task import Task
from tenfold.errors import UsageError
from tenfold.kernels.bag import bag
from tenfold.nn.memory import ExpertTable, RowTable, columns_of


class SplitTables(Task):
    """A task whose memory tables are split by width over groups of `table_ranks` ranks; 1 leaves them whole."""

    table_ranks: int = 1

    def building(self, place: Place) -> AbstractContextManager[None]:
        return own_columns(place, self.table_ranks)

    def parallelize(self, model: nn.Module, place: Place) -> None:
        split_tables(model, place, self.table_ranks)


def own_columns(place: Place, ranks: int) -> AbstractContextManager[None]:
    """Inside, tables are made as this rank holds them. Raises UsageError when `ranks` does not divide the world."""
    if place.world == 1:
        return columns_of(0, 1)
    if ranks < 1 or place.world % ranks:
        allowed = ", ".join(str(n) for n in range(1, place.world + 1) if place.world % n == 0)
        raise UsageError(f"tables split over {ranks} of {place.world} ranks: allowed are {allowed}.")
    return columns_of(place.rank % ranks, ranks)


def split_tables(model: nn.Module, place: Place, ranks: int) -> None:
    """Lets the tables made inside `own_columns` read through groups of `ranks` neighbouring ranks."""
    if place.world == 1 or ranks == 1 or not row_tables(model):
        return
    shard_memory(model, init_device_mesh(place.device.type, (place.world // ranks, ranks)))


def shard_memory(model: nn.Module, mesh: DeviceMesh) -> None:
    """Splits every table over the second dimension of `mesh` (replicas, group). Called on every rank, before the model is
    wrapped. Whole tables are cut; those made inside `own_columns` are taken as they are.

    Raises UsageError for a width that does not divide, and for tables of experts: their first product needs whole rows.
    """
    rank, ranks = mesh.get_local_rank(1), mesh.size(1)
    for table in [module for module in model.modules() if isinstance(module, RowTable)]:
        if isinstance(table, ExpertTable):
            raise UsageError(
                "a table of experts (variant 'peer') cannot be split by width: each expert's first product needs whole "
                "rows. Allowed: memory.group-size 1, or the variants pkm and plus."
            )
        with columns_of(rank, ranks):
            like = type(table)(1, table.width)  # refuses a width that does not divide, with what does
        for name in table.row_gradients:
            values = getattr(table, name)
            own = getattr(like, name).shape[1]
            if values.shape[1] != own:
                part = values.detach()[:, rank * own : (rank + 1) * own].clone()
                setattr(table, name, nn.Parameter(part, values.requires_grad))
        table.exchange = WidthExchange(mesh)
        table.register_state_dict_post_hook(_as_shards)
        table.register_load_state_dict_pre_hook(_take_columns)


class WidthExchange:
    """Reads a table of which this rank holds some columns (nn/memory.py: Exchange)."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh, self.ranks = mesh, mesh.size(1)
        self.group, self.replicas = mesh.get_group(1), mesh.get_group(0)
        self.collectives = GroupCollectives(self.group)
        self.checked = False

    def read(
        self,
        values: Float[Tensor, "k own"],
        index: Int[Tensor, "t b"],
        weight: Float[Tensor, "t b"],
        frozen: Tensor | None,
    ) -> Float[Tensor, "t d"]:
        if not self.checked:
            self._check(len(index), index.device)
        everyone = bag(values, gathered(index, self.group, self.ranks), self.collectives.all_gather(weight), frozen)
        return _Home.apply(everyone, self.group, self.ranks)

    def placed(self, tensor: Tensor) -> Tensor:
        """(K, D / G) as this rank's part of (K, D); a count of each row is the same on all ranks."""
        if tensor.ndim < 2:
            return tensor
        return DTensor.from_local(tensor, self.mesh, [Replicate(), Shard(1)], run_check=False)

    def columns(self, tensor: Tensor) -> Tensor:
        """This rank's part of a whole tensor."""
        return tensor.chunk(self.ranks, dim=1)[self.mesh.get_local_rank(1)]

    def _check(self, tokens: int, device: torch.device) -> None:
        counts = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(self.ranks)]
        dist.all_gather(counts, torch.tensor([tokens], device=device), self.group)
        found = [int(count) for count in counts]
        if len(set(found)) > 1:
            raise UsageError(
                f"the ranks of a memory group have {found} tokens: allowed is one number for all. Choose a batch and "
                f"sequence length that divide evenly over the ranks."
            )
        self.checked = True


class _Home(torch.autograd.Function):
    """(G T, D / G), the group's tokens in this rank's columns -> (T, D), this rank's tokens in all columns."""

    @staticmethod
    def forward(ctx: Any, everyone: Tensor, group: Any, ranks: int) -> Tensor:
        ctx.group, ctx.ranks = group, ranks
        home = torch.empty_like(everyone)
        dist.all_to_all_single(home, everyone.contiguous(), group=group)
        return home.unflatten(0, (ranks, -1)).transpose(0, 1).flatten(1)  # (G, T, D / G) -> (T, D)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        parts = grad.unflatten(1, (ctx.ranks, -1)).transpose(0, 1).flatten(0, 1).contiguous()
        everyone = torch.empty_like(parts)
        dist.all_to_all_single(everyone, parts, group=ctx.group)
        return everyone, None, None


def _as_shards(table: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    assert isinstance(table, RowTable)
    for name in table.row_gradients:
        state[prefix + name] = table.placed(state[prefix + name])


def _take_columns(table: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    assert isinstance(table, RowTable)
    for name in table.row_gradients:
        value = state.get(prefix + name)
        if isinstance(table.exchange, WidthExchange) and isinstance(value, Tensor):
            local = value.to_local() if isinstance(value, DTensor) else table.exchange.columns(value)
            state[prefix + name] = local

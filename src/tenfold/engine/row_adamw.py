"""RowAdamW: AdamW for large tables of which a step reads few rows, and whose gradient is those rows.

Row r moves exactly as dense AdamW would move it if it were called only in the steps that touched r, at those steps' rates:
moments, step count (for the bias correction) and decoupled decay are the row's own. A row that was not touched keeps its
weight and moments bit for bit, so the cost follows the rows read and not the table. AdamW: arXiv 1711.05101.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tenfold.kernels.bag import coalesced
from tenfold.kernels.bag_calls import RowStepCall
from tenfold.kernels.native import fits, large_pages, library, pointer


class RowAdamW(torch.optim.Optimizer):
    """Parameters (K, D) with sparse gradients. State of each: `exp_avg`, `exp_avg_sq` (K, D), `count` int32 (K)."""

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves the rows of every `parameter.grad`, which must be sparse (NotSparse would move all of them)."""
        assert closure is None, "RowAdamW takes no closure"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                assert parameter.grad.is_sparse, "RowAdamW moves rows: the gradient must be sparse"
                gradient = coalesced(parameter.grad)
                state = self.allocate(parameter)
                _move(parameter, gradient._indices()[0], gradient._values(), state, group)

    def allocate(self, parameter: Tensor) -> dict[str, Tensor]:
        """The parameter's state, made of zeros when there is none."""
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = large_pages(torch.zeros_like(parameter))
            state["exp_avg_sq"] = large_pages(torch.zeros_like(parameter))
            state["count"] = torch.zeros(len(parameter), dtype=torch.int32, device=parameter.device)
        return state


def _move(parameter: Tensor, ids: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    tensors = (parameter, *state.values(), ids, grad)
    native = library() if parameter.dtype == grad.dtype == torch.float32 and fits(*tensors) else None
    if native is not None:
        call = RowStepCall(
            parameter=pointer(parameter),
            exp_avg=pointer(state["exp_avg"]),
            exp_avg_sq=pointer(state["exp_avg_sq"]),
            count=pointer(state["count"]),
            d=parameter.shape[1],
            ids=pointer(ids),
            grad=pointer(grad),
            u=len(ids),
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            decay=group["weight_decay"],
            threads=torch.get_num_threads(),
        )
        native.row_adamw_f32(ctypes.byref(call))
        return
    count = state["count"][ids] + 1
    first = state["exp_avg"][ids].lerp_(grad, 1 - beta1)
    second = state["exp_avg_sq"][ids].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    rows = parameter[ids].mul_(1 - group["lr"] * group["weight_decay"])
    power = count.double()  # 1 - beta^t loses its digits in fp32 where t is small
    bias1 = (1 - beta1**power).to(rows.dtype)[:, None]
    bias2 = (1 - beta2**power).sqrt().to(rows.dtype)[:, None]
    rows -= group["lr"] * (first / bias1) / (second.sqrt() / bias2 + group["eps"])
    state["count"][ids] = count
    state["exp_avg"][ids] = first
    state["exp_avg_sq"][ids] = second
    parameter[ids] = rows

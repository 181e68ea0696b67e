"""Paged KV cache on a device: one pass whose lengths, block tables and rows are tensors, so that it can be a CUDA graph.

    step = DeviceStep(cache, tables, size=16, prefix=lengths, before=0, count=nodes)
    y = step.layers[0].attend(q, k, v, tree.mask)                     as a PagedStep does (inference/pages.py)

A `PagedStep` is made again for every pass from numbers that the host knows. This one has the same shape whatever the lengths
are, so a pass can be recorded once as a CUDA graph and played again, and the host need not know how many tokens the pass
before it has brought. Of a request's rows the first prefix[b] are seen by every query (no mask), the `before + count` behind
them by those that the mask names; the two parts are merged by their log-sum-exp, on a GPU inside one kernel
(kernels/paged_triton.py), elsewhere by plain operations.

    B requests   N = count new rows of each   S = before + count   P pages of a table
    H heads   G key/value heads   D head width
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tenfold.inference.pages import PagedCache
from tenfold.kernels.native import triton_refused
from tenfold.nn.attention import attend_lse, merge_attention


class DeviceStep:
    """The KV cache as one pass on a device sees it. lows[b, i]: of a request's rows, the first that its new row i sees (a
    sliding window)."""

    length = 0  # positions are always given

    def __init__(
        self,
        cache: PagedCache,
        tables: Int[Tensor, "B P"],
        size: int,
        prefix: Int[Tensor, " B"],
        before: int,
        count: int,
        lows: Int[Tensor, "B N"] | None = None,
    ) -> None:
        self.cache, self.tables, self.size, self.prefix = cache, tables, size, prefix
        self.count, self.tail, self.lows = count, before + count, lows
        device = cache.keys.device
        self.new = slots(tables, size, prefix[:, None] + torch.arange(before, before + count, device=device))
        self.causal = torch.ones(count, self.tail, dtype=torch.bool, device=device).tril(before)
        self.layers = [DeviceLayer(self, k, v) for k, v in zip(cache.keys.unbind(), cache.values.unbind())]


class DeviceLayer:
    """One layer of a `DeviceStep`."""

    def __init__(self, step: DeviceStep, keys: Float[Tensor, "g slots d"], values: Float[Tensor, "g slots d"]) -> None:
        self.step, self.keys, self.values = step, keys, values

    def attend(
        self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n d"], mask: Tensor | None
    ) -> Float[Tensor, "b h n d"]:
        """See nn/attention.py, `KeyValues`. mask (N, S)."""
        step = self.step
        mask = step.causal if mask is None else mask
        assert mask.shape == (step.count, step.tail), "one tree for all requests"
        if q.device.type == "cuda" and not triton_refused():
            from tenfold.kernels import paged_triton

            paged_triton.store(k, v, self.keys, self.values, step.new)
            return paged_triton.attend(q, self.keys, self.values, step.tables, step.size, step.prefix, mask, step.lows)
        groups, width = k.shape[1], k.shape[3]
        self.keys[:, step.new.flatten()] = k.transpose(0, 1).reshape(groups, -1, width)
        self.values[:, step.new.flatten()] = v.transpose(0, 1).reshape(groups, -1, width)
        return attend_paged(q, self.keys, self.values, step.tables, step.size, step.prefix, mask, step.lows)


def slots(tables: Int[Tensor, "B P"], size: int, rows: Int[Tensor, "B n"]) -> Int[Tensor, "B n"]:
    """The places of rows in the pool."""
    return tables.gather(1, rows // size) * size + rows % size


def attend_paged(
    q: Float[Tensor, "b h n d"],
    keys: Float[Tensor, "g slots d"],
    values: Float[Tensor, "g slots d"],
    tables: Int[Tensor, "b p"],
    size: int,
    prefix: Int[Tensor, " b"],
    mask: Bool[Tensor, "n s"],
    lows: Int[Tensor, "b n"] | None = None,
) -> Float[Tensor, "b h n d"]:
    """Attention over the first prefix[b] rows and, by `mask`, over the S rows behind them. lows[b, i]: query i sees no row
    before it. Reads all rows that a table has room for: without a kernel, and as the kernel's oracle."""
    every = torch.arange(tables.shape[1] * size, device=q.device)
    seen = every[None, None] < prefix[:, None, None]
    behind = prefix[:, None] + torch.arange(mask.shape[1], device=q.device)
    shown = mask[None]
    if lows is not None:
        seen = seen & (every >= lows[..., None])
        shown = shown & (behind[:, None] >= lows[..., None])
    parts = []
    for rows, visible in ((every.expand(len(tables), -1), seen), (behind, shown)):
        places = slots(tables, size, rows)
        k, v = keys[:, places].transpose(0, 1), values[:, places].transpose(0, 1)
        parts.append(attend_lse(q, k, v, visible[:, None]))
    return merge_attention(*parts)

"""KV cache: keys and values of the tokens already seen, for decoding one or a few tokens at a time.

H key/value heads   N new tokens   T tokens so far   D head width
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenfold.nn.attention import attend, causal_mask, tail_mask


class LayerCache:
    """One layer's keys and values in preallocated memory; `append` returns views of all tokens so far."""

    def __init__(self, batch: int, heads: int, capacity: int, head_dim: int, dtype: torch.dtype, device: torch.device):
        self.keys = torch.empty(batch, heads, capacity, head_dim, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def append(
        self, k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n d"]
    ) -> tuple[Float[Tensor, "b h t d"], Float[Tensor, "b h t d"]]:
        end = self.length + k.shape[2]
        if end > self.keys.shape[2]:
            self._grow(end)
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def attend(
        self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n d"], mask: Tensor | None
    ) -> Float[Tensor, "b h n d"]:
        """Appends k, v; see nn/attention.py, `KeyValues`."""
        keys, values = self.append(k, v)
        if mask is not None:
            mask = tail_mask(mask, keys.shape[2])
        elif q.shape[2] > 1:
            mask = causal_mask(q.shape[2], keys.shape[2], q.device)
        return attend(q, keys, values, mask)

    def keep(self, start: int, rows: Int[Tensor, " n"]) -> None:
        """Of the tokens from `start` on keeps `rows` (counted from there), in this order: the accepted path of a tree."""
        end = start + len(rows)
        self.keys[:, :, start:end] = self.keys[:, :, start + rows]
        self.values[:, :, start:end] = self.values[:, :, start + rows]
        self.truncate(end)

    def truncate(self, length: int) -> None:
        """Forgets the tokens from `length` on (a rejected draft)."""
        assert 0 <= length <= self.length, f"cannot keep {length} of {self.length} tokens"
        self.length = length

    def _grow(self, needed: int) -> None:
        capacity = max(needed, 2 * self.keys.shape[2])
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(*old.shape[:2], capacity, old.shape[3])
            new[:, :, : self.length] = old[:, :, : self.length]
            setattr(self, name, new)


class Cache:
    """One LayerCache per layer. `length` is the number of tokens held."""

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        head_dim: int,
        capacity: int = 256,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        place = device or torch.device("cpu")
        self.layers = [LayerCache(batch, heads, capacity, head_dim, dtype, place) for _ in range(layers)]

    @property
    def length(self) -> int:
        return self.layers[0].length

    def truncate(self, length: int) -> None:
        for layer in self.layers:
            layer.truncate(length)

    def keep(self, start: int, rows: Int[Tensor, " n"]) -> None:
        for layer in self.layers:
            layer.keep(start, rows)

"""A transformer stack over a paged KV cache, as one call of csrc/decode.cpp: what a decoding step runs instead of the modules.

    stack = Stack.of(layers, attention, norm, head)          None where the blocks have no such form, see `refusal`
    out = stack.run(embeddings, rotation, step, mask=tree.mask, taps=(2, 15, 27))

It computes what the modules do, with fewer roundings: rows stay in fp32 between the products. A row has the same bits in a
pass over any other rows, so a token checked in a tree is the token that plain decoding would have written, in bf16 too.

    M rows   D width   V outputs of the head   F = D times the number of taps
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tenfold.inference.pages import PagedStep
from tenfold.kernels import decode
from tenfold.kernels.packed import PackedWeight
from tenfold.nn.attention import AttentionConfig
from tenfold.nn.block import Block
from tenfold.nn.ffn import SwiGLUFFN
from tenfold.nn.norm import RMSNorm
from tenfold.nn.rope import Rotation


@dataclass(frozen=True)
class LayerParts:
    """The maps of one layer. `side`: the norm of rows that go before x into qkv (EAGLE-3's embeddings)."""

    norm1: nn.Module
    qkv: nn.Module
    out: nn.Module
    norm2: nn.Module
    first: nn.Module
    down: nn.Module
    side: nn.Module | None = None

    @staticmethod
    def of(block: nn.Module) -> LayerParts | None:
        """Of a pre-norm block with a SwiGLU network; None for another one."""
        if not (isinstance(block, Block) and isinstance(block.ffn, SwiGLUFFN) and block.config.norm_first):
            return None
        if block.scale1 is not None or block.scale2 is not None:
            return None
        attention, ffn = block.attention, block.ffn
        return LayerParts(block.norm1, attention.qkv, attention.out, block.norm2, ffn.gate_up, ffn.down)


@dataclass(frozen=True)
class StackOutput:
    """x (M, D) behind the last layer, fp32; tapped (M, F) and hidden (M, D), bf16; logits (rows read, V), fp32."""

    x: Tensor
    tapped: Tensor | None
    hidden: Tensor
    logits: Tensor | None


class Stack:
    """Blocks, last norm and head as decode.cpp takes them. It keeps what it points to alive, and sees no later change of the
    modules."""

    def __init__(self, layers: Sequence[LayerParts], attention: AttentionConfig, norm: nn.Module, head: nn.Module):
        self.attention, self._kept = attention, []
        self._layers = (decode.Layer * len(layers))()
        for into, parts in zip(self._layers, layers, strict=True):
            into.norm1, into.norm2 = self._norm(parts.norm1), self._norm(parts.norm2)
            into.norm_side = None if parts.side is None else self._norm(parts.side)
            into.qkv, into.out = self._linear(parts.qkv), self._linear(parts.out)
            into.first, into.down = self._linear(parts.first), self._linear(parts.down)
        self._last, self._head = self._norm(norm), self._linear(head)
        assert isinstance(norm, RMSNorm)
        self.eps = norm.eps

    @staticmethod
    def of(
        layers: Sequence[LayerParts | None], attention: AttentionConfig, norm: nn.Module, head: nn.Module | None
    ) -> Stack | None:
        """A stack, or None where `refusal` has a reason."""
        if refusal(layers, attention, norm, head) is not None:
            return None
        assert head is not None
        return Stack([parts for parts in layers if parts is not None], attention, norm, head)

    def _norm(self, norm: nn.Module) -> int:
        weight = norm.get_parameter("weight").detach().float().clone()
        self._kept.append(weight)
        return weight.data_ptr()

    def _linear(self, layer: nn.Module) -> decode.Linear:
        assert isinstance(layer, PackedWeight)
        self._kept.append(layer)
        return layer.native

    def run(
        self,
        x: Float[Tensor, "m d"],
        rotation: Rotation,
        step: PagedStep,
        mask: Bool[Tensor, "*b n s"] | None = None,
        taps: Sequence[int] = (),
        side: Float[Tensor, "m d"] | None = None,
        read: Int[Tensor, " rows"] | None = None,
    ) -> StackOutput:
        """One pass over the rows of `step`, the requests one after the other. mask, as KeyValues.attend takes it; taps:
        layers whose inputs are wanted; read: rows whose logits are wanted (None: all)."""
        c, rows = self.attention, len(x)
        x = x.float().clone() if x.dtype == torch.float32 else x.float()
        x, side = x.contiguous(), None if side is None else side.float().contiguous()
        cos, sin = (part.reshape(-1, c.width).float().contiguous() for part in (rotation.cos, rotation.sin))
        assert len(cos) == rows, "one rotation for every row"
        read = torch.arange(rows) if read is None else read
        counts, ends = torch.tensor([step.counts, [len(s) for s in step.slots]])
        places = torch.cat(step.slots)
        tapped = torch.empty(rows, len(taps) * c.dim, dtype=torch.bfloat16) if taps else None
        hidden = torch.empty(rows, c.dim, dtype=torch.bfloat16)
        logits = torch.empty(len(read), self._head.outputs)
        layers, keys, values = torch.tensor(list(taps), dtype=torch.int64), step.cache.keys, step.cache.values
        assert keys.dtype == torch.bfloat16, "the passes of decode.cpp keep the KV cache in bf16"
        seen = None if mask is None else mask.to(torch.uint8).contiguous()
        at = decode.pointer
        whole = decode.Pass(
            layers=ctypes.addressof(self._layers),
            depth=len(self._layers),
            dim=c.dim,
            heads=c.heads,
            groups=c.groups,
            width=c.width,
            eps=self.eps,
            keys=at(keys),
            values=at(values),
            slots=keys.shape[2],
            rows=rows,
            x=at(x),
            side=at(side),
            cos=at(cos),
            sin=at(sin),
            requests=len(step.counts),
            counts=at(counts),
            places=at(places),
            ends=at(ends),
            mask=at(seen),
            mask_columns=0 if seen is None else seen.shape[-1],
            mask_stride=_stride(seen),
            window=step.window or 0,
            taps=at(layers),
            tap_count=len(taps),
            tapped=at(tapped),
            norm=self._last,
            hidden=at(hidden),
            head=self._head,
            read=at(read),
            read_count=len(read),
            logits=at(logits),
            threads=torch.get_num_threads(),
        )
        decode.functions().decode_pass(ctypes.byref(whole))
        return StackOutput(x, tapped, hidden, logits)


def _stride(mask: Tensor | None) -> int:
    return 0 if mask is None or mask.ndim == 2 else mask.shape[-1] * mask.shape[-2]


def refusal(
    layers: Sequence[LayerParts | None], attention: AttentionConfig, norm: nn.Module, head: nn.Module | None
) -> str | None:
    """Why these parts cannot be one call, or None."""
    if reason := decode.refusal():
        return reason
    norms, maps = [norm], [head]
    for parts in layers:
        if parts is None:
            return "a layer is not a pre-norm block with a SwiGLU network"
        norms += [parts.norm1, parts.norm2, *([] if parts.side is None else [parts.side])]
        maps += [parts.qkv, parts.out, parts.first, parts.down]
    for layer in maps:
        if not isinstance(layer, PackedWeight) or not layer.tiled or layer.bias is not None:
            return f"{type(layer).__name__} is not a tiled weight, or it has a bias"
    if not all(isinstance(n, RMSNorm) and n.eps == getattr(norm, "eps", None) for n in norms):
        return "its norms are not RMSNorm of one epsilon"
    sizes = {layer.inputs for layer in maps if isinstance(layer, PackedWeight)}
    if attention.width % 32 or attention.width > 256 or any(size % 32 for size in sizes):
        return "a width is not a multiple of 32, or heads are wider than 256"
    return None

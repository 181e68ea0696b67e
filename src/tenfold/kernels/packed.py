"""Packed weights of a linear layer for decoding: fp32, tiled or reordered bf16, and quantised int8 and int4 in groups of 32.

    layer = Int8Linear(weight, bias)                    a module, x (..., in) -> (..., out)
    layer.bytes                                         what one pass reads, which is all that a few rows cost
    layer.tiled, layer.native                           the same weight as csrc/decode.cpp takes it, where it can

Which of them a name means, and where it can be used: formats.py.

M rows   i inputs   o outputs   g groups of 32 inputs
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from tenfold.kernels import decode

GROUP = 32


class PackedWeight(nn.Module):
    """What every packed linear map says of itself. One with a kernel in csrc/decode.cpp sets `tiled` and gives `native`."""

    inputs: int
    outputs: int
    bytes: int
    bias: Tensor | None
    tiled = False

    @property
    def native(self) -> decode.Linear:
        """The weight as csrc/decode.cpp takes it, for a map that is `tiled`."""
        raise TypeError(f"{type(self).__name__} has no tiles for decode.cpp.")


class PlainLinear(PackedWeight):
    """fp32, or bf16 on another device. Inputs in another format are taken to the weight's."""

    weight: Tensor

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.shape
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.bytes = weight.numel() * weight.element_size()

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class TiledLinear(PackedWeight):
    """bf16 in the tiles of decode.cpp. A row's result does not depend on the rows beside it, down to the last bit."""

    tiled = True

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.shape
        self.weight = decode.tiles(weight.bfloat16())
        self.bias = None if bias is None else bias.bfloat16()
        self.bytes = weight.numel() * 2

    @property
    def native(self) -> decode.Linear:
        return decode.Linear(
            weight=self.weight.data_ptr(), groups=None, outputs=self.outputs, inputs=self.inputs, kind=decode.BF16
        )

    def wide(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """The product in fp32, without the bias."""
        return decode.linear(self.native, x)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        y = self.wide(x).to(torch.bfloat16)
        return y if self.bias is None else y + self.bias


class ReorderedLinear(PackedWeight):
    """bf16 in oneDNN's own order of the weight, which serves every number of rows; the products are those of F.linear."""

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.shape
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16().contiguous(), 16)
        self.bias = None if bias is None else bias.bfloat16()
        self.bytes = weight.numel() * 2

    def forward(self, x: Float[Tensor, "*b i"], residual: Float[Tensor, "*b o"] | None = None) -> Float[Tensor, "*b o"]:
        if residual is not None:  # summed inside the product
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class Int8Linear(PackedWeight):
    """Weights in 8 bits, rounded to the nearest, with one scale for every 32 of an output (decode.cpp, which rounds inputs to
    8 bits alike), or for all of an output (torch's kernel); inputs and outputs in bf16."""

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None) -> None:
        super().__init__()
        wide = weight.float()
        self.outputs, self.inputs = weight.shape
        self.tiled = decode.refusal() is None and self.inputs % GROUP == 0
        groups = wide.unflatten(1, (-1, GROUP if self.tiled else self.inputs))
        scale = groups.abs().amax(-1).clamp_min(1e-6) / 127
        scale = scale.half().float() if self.tiled else scale
        codes = (groups / scale[..., None]).round().clamp(-127, 127).flatten(1).to(torch.int8)
        if self.tiled:
            self.weight, self.scale = decode.tiles8(codes, scale)
        else:
            self.weight, self.scale = codes, scale[:, 0].bfloat16()
        self.bias = None if bias is None else bias.bfloat16()
        self.bytes = weight.numel() + (scale.numel() * 2 if self.tiled else 0)

    @property
    def native(self) -> decode.Linear:
        weight, scale = self.weight.data_ptr(), self.scale.data_ptr()
        return decode.Linear(weight=weight, groups=scale, outputs=self.outputs, inputs=self.inputs, kind=decode.INT8)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        if self.tiled:
            y = decode.linear(self.native, x).to(torch.bfloat16)
        else:
            y = torch.ops.aten._weight_int8pack_mm(x.flatten(0, -2), self.weight, self.scale)
            y = y.unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias


class Int4Linear(PackedWeight):
    """w = scale q + offset with q of 4 bits: `codes` (o, i) in 0..15, `scale` and `offset` (o, g). Inputs in bf16."""

    def __init__(self, codes: UInt8[Tensor, "o i"], scale: Float[Tensor, "o g"], offset: Float[Tensor, "o g"]) -> None:
        super().__init__()
        self.outputs, self.inputs = codes.shape
        self.bias = None
        self.tiled = decode.refusal() is None
        if self.tiled:
            self.packed, self.parameters_ = decode.tiles4(codes, scale, offset)
        else:
            self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
            # The kernel computes (q - 8) scale + zero.
            self.parameters_ = torch.stack([scale, offset + 8 * scale], -1).transpose(0, 1).contiguous().bfloat16()
        self.bytes = codes.numel() // 2 + scale.numel() * 4

    @property
    def native(self) -> decode.Linear:
        weight, groups = self.packed.data_ptr(), self.parameters_.data_ptr()
        return decode.Linear(weight=weight, groups=groups, outputs=self.outputs, inputs=self.inputs, kind=decode.INT4)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        if self.tiled:
            return decode.linear(self.native, x).to(x.dtype)
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(x.flatten(0, -2), self.packed, GROUP, self.parameters_)
        return y.unflatten(0, x.shape[:-1])


def unpack_q4_1(
    blocks: UInt8[Tensor, "o bytes"],
) -> tuple[UInt8[Tensor, "o i"], Float[Tensor, "o g"], Float[Tensor, "o g"]]:
    """Codes, scales and offsets of rows of Q4_1 blocks: fp16 scale, fp16 offset, 16 bytes whose low halves are the codes 0 to
    15 and whose high halves are 16 to 31."""
    block = blocks.view(len(blocks), -1, 20)
    numbers = block[:, :, :4].contiguous().view(torch.float16).float()
    codes = torch.cat([block[:, :, 4:] & 15, block[:, :, 4:] >> 4], dim=-1)
    return codes.flatten(1), numbers[:, :, 0], numbers[:, :, 1]

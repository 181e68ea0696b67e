"""Number formats of a linear map for decoding on a CPU, where reading the weight is the whole cost.

    layer = pack(weight, bias, "bf16")                  a module, x (..., in) -> (..., out)
    refusal("int4", weight)                             why a format cannot be used here, or None

    fp32   as it is
    bf16   half the bytes: in tiles for decode.cpp, or in oneDNN's own order for the CPU's bf16 units
    int8   a quarter of fp32; with decode.cpp groups of 32 with a scale, and inputs rounded alike
    int4   groups of 32 with a scale and an offset, as GGUF's Q4_1 stores them: taken over without quantising again; with
           decode.cpp inputs are rounded to 8 bits, a scale for every 32

M rows   i inputs   o outputs   g groups of 32 inputs
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from tenfold.errors import UsageError
from tenfold.kernels import decode
from tenfold.kernels.linear import bf16_refusal

Format = Literal["fp32", "bf16", "int8", "int4"]
GROUP = 32


class PlainLinear(nn.Module):
    """fp32, or bf16 on another device. Inputs in another format are taken to the weight's."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.bytes = weight.numel() * weight.element_size()

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class TiledLinear(nn.Module):
    """bf16 in the tiles of decode.cpp. A row's result does not depend on the rows beside it, down to the last bit."""

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.shape
        self.weight = decode.tiles(weight.bfloat16())
        self.bias = None if bias is None else bias.bfloat16()
        self.bytes = weight.numel() * 2

    @property
    def native(self) -> decode.Linear:
        return decode.Linear(self.weight.data_ptr(), None, self.outputs, self.inputs, decode.BF16)

    def wide(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """The product in fp32, without the bias."""
        return decode.linear(self.native, x)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        y = self.wide(x).to(torch.bfloat16)
        return y if self.bias is None else y + self.bias


class ReorderedLinear(nn.Module):
    """bf16 in oneDNN's own order of the weight, which serves every number of rows; the products are those of F.linear."""

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16().contiguous(), 16)
        self.bias = None if bias is None else bias.bfloat16()
        self.bytes = weight.numel() * 2

    def forward(self, x: Float[Tensor, "*b i"], residual: Float[Tensor, "*b o"] | None = None) -> Float[Tensor, "*b o"]:
        if residual is not None:  # summed inside the product
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class Int8Linear(nn.Module):
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
        pointers = self.weight.data_ptr(), self.scale.data_ptr()
        return decode.Linear(*pointers, self.outputs, self.inputs, decode.INT8)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        if self.tiled:
            y = decode.linear(self.native, x).to(torch.bfloat16)
        else:
            y = torch.ops.aten._weight_int8pack_mm(x.flatten(0, -2), self.weight, self.scale)
            y = y.unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias


class Int4Linear(nn.Module):
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
        pointers = self.packed.data_ptr(), self.parameters_.data_ptr()
        return decode.Linear(*pointers, self.outputs, self.inputs, decode.INT4)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        if self.tiled:
            return decode.linear(self.native, x).to(x.dtype)
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(x.flatten(0, -2), self.packed, GROUP, self.parameters_)
        return y.unflatten(0, x.shape[:-1])


def pack(weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None, form: Format) -> nn.Module:
    """A linear map in a format. Raises UsageError with the reason where it cannot be. int4 is made by `Int4Linear`, from
    weights that are stored so."""
    reason = refusal(form, weight)
    if reason:
        raise UsageError(f"weights in {form}: {reason}.")
    if form == "int8":
        return Int8Linear(weight, bias)
    if form == "fp32":
        return PlainLinear(weight.float(), None if bias is None else bias.float())
    if weight.device.type == "cpu" and decode.refusal() is None and weight.shape[1] % 2 == 0:
        return TiledLinear(weight, bias)
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return PlainLinear(weight.bfloat16(), None if bias is None else bias.bfloat16())
    return ReorderedLinear(weight, bias)


def refusal(form: Format, weight: Float[Tensor, "o i"]) -> str | None:
    """Why a weight cannot be in this format here, or None."""
    if form == "int4":
        return "4 bits are taken from a GGUF file in Q4_1, not made from other weights"
    if form == "int8" and weight.device.type != "cpu":
        return f"the 8-bit kernel runs on a CPU, the weights are on {weight.device}"
    if form == "bf16" and weight.device.type == "cpu" and (decode.refusal() or weight.shape[1] % 2):
        return bf16_refusal()
    return None


def quickest() -> Format:
    """The smallest lossless format in which this processor multiplies a few rows by a weight quickly."""
    return "fp32" if decode.refusal() and bf16_refusal() else "bf16"


def unpack_q4_1(
    blocks: UInt8[Tensor, "o bytes"],
) -> tuple[UInt8[Tensor, "o i"], Float[Tensor, "o g"], Float[Tensor, "o g"]]:
    """Codes, scales and offsets of rows of Q4_1 blocks: fp16 scale, fp16 offset, 16 bytes whose low halves are the codes 0 to
    15 and whose high halves are 16 to 31."""
    block = blocks.view(len(blocks), -1, 20)
    numbers = block[:, :, :4].contiguous().view(torch.float16).float()
    codes = torch.cat([block[:, :, 4:] & 15, block[:, :, 4:] >> 4], dim=-1)
    return codes.flatten(1), numbers[:, :, 0], numbers[:, :, 1]

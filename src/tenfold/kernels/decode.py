"""CPU decoding kernels (csrc/decode.cpp): products of a few rows with tiled weights, and whole passes of a transformer stack.

    decode.refusal()                                     why it cannot be used here, or None
    weight = decode.tiles(w)
    tiled = decode.Linear(weight=weight.data_ptr(), groups=None, outputs=o, inputs=i, kind=decode.BF16)
    y = decode.linear(tiled, x)
    decode.argmax(logits)

Beside a product that waits for memory, a decoding step in torch spends as much again in small operations: some fifteen for
each layer, each with its own call, its own output and its own rounding. In one call they cost next to nothing, weights are
asked for while the rows before are still being multiplied, and every sum has one order, whatever the number of rows.

    M rows   i inputs   o outputs   g groups of 32 inputs
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor

from tenfold.kernels.native import build
from tenfold.kernels.structures import CStructure

SOURCE = Path(__file__).parent / "csrc" / "decode.cpp"
BF16, INT4, INT8 = 0, 1, 2
LANES, OUTPUTS, GROUP = 16, 64, 32

_P, _N, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Linear(CStructure):
    """A tiled weight as decode.cpp takes it. Whoever makes one keeps the tensors alive."""

    _fields_ = [("weight", _P), ("groups", _P), ("outputs", _N), ("inputs", _N), ("kind", _N)]


class Layer(CStructure):
    _fields_ = [
        *(("norm1", _P), ("norm_side", _P), ("qkv", Linear), ("out", Linear)),
        *(("norm2", _P), ("first", Linear), ("down", Linear)),
    ]


class Pass(CStructure):
    """See decode.cpp; inference/stack.py fills it."""

    _fields_ = [
        *(("layers", _P), ("depth", _N), ("dim", _N), ("heads", _N), ("groups", _N), ("width", _N), ("eps", _F)),
        *(("keys", _P), ("values", _P), ("slots", _N), ("rows", _N), ("x", _P), ("side", _P), ("cos", _P), ("sin", _P)),
        *(("requests", _N), ("counts", _P), ("places", _P), ("ends", _P)),
        *(("mask", _P), ("mask_columns", _N), ("mask_stride", _N), ("window", _N)),
        *(("taps", _P), ("tap_count", _N), ("tapped", _P), ("norm", _P), ("hidden", _P)),
        *(("head", Linear), ("read", _P), ("read_count", _N), ("logits", _P), ("threads", _N)),
    ]


STRUCTURES = (Linear, Layer, Pass)


@cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    native, reason = build(SOURCE, STRUCTURES)
    if native is not None and not native.decode_supported():
        return None, "this CPU, or its compiler, has neither AVX512_BF16 with VNNI nor AVX2 with FMA"
    return native, reason


def refusal() -> str | None:
    """Why the compiled passes cannot be used here, or None."""
    return _library()[1] or None


def lanes() -> int:
    """Bits of the registers that the compiled passes use: 512, 256, or 0 where they cannot be used."""
    native, _ = _library()
    return 0 if native is None else int(native.decode_supported())


def functions() -> ctypes.CDLL:
    native, reason = _library()
    assert native is not None, reason
    return native


def tiles(weight: Float[Tensor, "o i"]) -> Float[Tensor, "blocks half 64 2"]:
    """bf16 weights as decode.cpp reads them: 64 outputs side by side, pairs of inputs one after the other. i is even."""
    outputs, inputs = weight.shape
    whole = weight.new_zeros(-(-outputs // OUTPUTS) * OUTPUTS, inputs)
    whole[:outputs] = weight
    return whole.view(-1, OUTPUTS, inputs // 2, 2).permute(0, 2, 1, 3).contiguous()


def tiles4(
    codes: UInt8[Tensor, "o i"], scale: Float[Tensor, "o g"], offset: Float[Tensor, "o g"]
) -> tuple[UInt8[Tensor, "blocks g 4 4 64"], Float[Tensor, "blocks g 2 64"]]:
    """4-bit weights w = scale q + offset: a byte holds an input and the one four places on. Scales and offsets in fp16."""
    parts = _quads(codes)  # ..., quad, (lane, input)
    bytes_ = parts[..., 0::2, :] | parts[..., 1::2, :] << 4
    return bytes_.contiguous(), _by_block([scale, offset])


def tiles8(
    codes: Int8[Tensor, "o i"], scale: Float[Tensor, "o g"]
) -> tuple[UInt8[Tensor, "blocks g 4 8 64"], Float[Tensor, "blocks g 1 64"]]:
    """8-bit weights w = scale q, a scale for every 32 inputs in fp16; the codes are kept with 128 added."""
    return _quads((codes.int() + 128).to(torch.uint8)).contiguous(), _by_block([scale])


def _quads(codes: UInt8[Tensor, "o i"]) -> UInt8[Tensor, "blocks g 4 8 64"]:
    """16 outputs side by side, four inputs of each."""
    outputs, inputs = codes.shape
    blocks = -(-outputs // OUTPUTS)
    whole = codes.new_zeros(blocks * OUTPUTS, inputs)
    whole[:outputs] = codes
    # block, tile, lane, group, quad, input -> block, group, tile, quad, (lane, input)
    return whole.view(blocks, 4, LANES, inputs // GROUP, 8, 4).permute(0, 3, 1, 4, 2, 5).flatten(-2)


def _by_block(numbers: Sequence[Float[Tensor, "o g"]]) -> Float[Tensor, "blocks g kinds 64"]:
    outputs, groups = numbers[0].shape
    blocks = -(-outputs // OUTPUTS)
    whole = torch.zeros(len(numbers), blocks * OUTPUTS, groups, dtype=torch.float16)
    for kind, values in enumerate(numbers):
        whole[kind, :outputs] = values
    return whole.view(len(numbers), blocks, OUTPUTS, groups).permute(1, 3, 0, 2).contiguous()


def linear(weight: Linear, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
    """x W^T in fp32; x is rounded to bf16."""
    rows = x.to(torch.bfloat16).contiguous()
    y = torch.empty(*x.shape[:-1], weight.outputs)
    count = rows.numel() // weight.inputs
    functions().decode_linear(ctypes.byref(weight), pointer(rows), _N(count), pointer(y), _N(torch.get_num_threads()))
    return y


def argmax(x: Float[Tensor, "*b v"]) -> Int[Tensor, "*b"]:
    """The first largest entry of every row of fp32 numbers."""
    rows = x.contiguous()
    best = torch.empty(x.shape[:-1], dtype=torch.int64)
    functions().decode_argmax(pointer(rows), _N(best.numel()), _N(x.shape[-1]), pointer(best))
    return best


def pointer(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else _P(tensor.data_ptr())

"""2:4 packed activations of a trained Squared-ReLU model: bytes as sparse matrix units read them, and whether they are exact.

    packed = pack_layers(model, tokens, "sm80", names)         Packed24 of every layer named, of tokens (B, N)
    figures(packed["blocks.0.ffn"], exact)                     bytes, bytes of the dense operand, largest error
    save(path, packed)                                         one safetensors file: NAME.values, NAME.meta, NAME.scale

A layer's operand is relu(x W_up)^2 with 2 of every 4 features kept. Packing takes one pass of a Triton kernel where the model
is on a GPU (`nn.pack24.pack_activations`); training does not take this path yet, it multiplies masked dense operands.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenfold.data.atomic import aside
from tenfold.data.tensors import write_safetensors
from tenfold.language.models.language_model import visit_hidden_units
from tenfold.language.models.llama import Llama
from tenfold.nn.ffn import SquaredReLUFFN
from tenfold.nn.pack24 import Packed24, pack_activations, unpack24
from tenfold.nn.sparse24 import select24

KEY = "tenfold-packed24"  # the metadata entry: layout and shape of every layer


@torch.no_grad()
def pack_layers(
    model: Llama, tokens: Int[Tensor, "b n"], layout: str, names: Collection[str]
) -> dict[str, tuple[Packed24, Float[Tensor, "rows cols"]]]:
    """For the layers named, what is packed and the dense operand it has to equal. Raises UsageError for an unknown layout."""
    found: dict[str, tuple[Packed24, Tensor]] = {}

    def seen(name: str, _layer: SquaredReLUFFN, y1: Tensor) -> None:
        if name in names:
            y1 = y1.to(torch.float32 if layout == "sm90_fp8" else torch.bfloat16)
            found[name] = (pack_activations(y1, layout), y1.relu().square() * select24(y1))

    visit_hidden_units(model, tokens, seen)
    return found


def figures(packed: Packed24, exact: Float[Tensor, "rows cols"]) -> dict[str, float | int]:
    """Bytes of values, metadata and scales beside those of the dense operand in bf16, and the largest error of unpacking them,
    relative to the largest value (0 where the layout keeps 16 bits or more; fp8 rounds)."""
    parts = [packed.values, packed.meta, *([] if packed.scale is None else [packed.scale])]
    error = (unpack24(packed).float() - exact.float()).abs().max() / exact.float().abs().max().clamp_min(1e-30)
    return {
        "bytes": sum(part.nbytes for part in parts),
        "dense bf16 bytes": 2 * exact.numel(),
        "largest error": float(error),
    }


def save(path: Path, packed: dict[str, Packed24]) -> None:
    tensors: dict[str, Tensor] = {}
    for name, one in packed.items():
        tensors |= {f"{name}.values": one.values.cpu(), f"{name}.meta": one.meta.cpu()}
        if one.scale is not None:
            tensors[f"{name}.scale"] = one.scale.cpu()
    about = {name: {"layout": one.layout, "shape": one.shape} for name, one in packed.items()}
    with aside(path) as part:
        write_safetensors(part, tensors, {KEY: json.dumps(about)})

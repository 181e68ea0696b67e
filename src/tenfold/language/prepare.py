"""A Llama made ready for decoding: its linear maps in one number format, everything else in the type that goes with it.

    model = prepare(tenfold.load("SmolLM2.gguf"), "bf16")
    target = open_target("SmolLM2.gguf", "auto")                 auto: bf16 where the CPU has units for it, else fp32
    target = open_target("SmolLM2.gguf", "int4")                 Q4_1 as it is stored, nothing quantised again

Lossless decoding means: the same text as this model alone, in this format.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from tenfold.errors import UsageError, WeightsError
from tenfold.export.gguf import GGUFFile, open_gguf
from tenfold.export.weights import load
from tenfold.language.llama import Llama
from tenfold.language.weights import GGUF_STEMS, gguf_rows
from tenfold.nn.formats import Format, Int4Linear, pack, unpack_q4_1
from tenfold.nn.linear import bf16_refusal

FORMATS = ("auto", "fp32", "bf16", "int8", "int4")
FormatChoice = Literal["auto", "fp32", "bf16", "int8", "int4"]


@dataclass(frozen=True)
class Target:
    """`model` decodes, in `form`; `source` is the model as its file holds it, by which a drafter knows its target."""

    model: Llama
    form: Format
    source: Llama


def open_target(path: str | Path, form: FormatChoice = "auto") -> Target:
    """The model in a file or folder, ready for decoding. Raises UsageError where the format cannot be had, WeightsError
    where the file cannot be read or is no Llama."""
    if form not in FORMATS:
        raise UsageError(f"weights in {form!r}: allowed are {', '.join(FORMATS)}.")
    source = load(path)
    if not isinstance(source, Llama):
        raise WeightsError(f"{path} is a {type(source).__name__}, not a language model.")
    chosen: Format = ("bf16" if bf16_refusal() is None else "fp32") if form == "auto" else form
    packed = open_gguf(Path(path)) if chosen == "int4" and Path(path).suffix == ".gguf" else None
    return Target(prepare(source, chosen, packed), chosen, source)


def prepare(model: Llama, form: Format, source: GGUFFile | None = None) -> Llama:
    """A model that shares what it can with `model`. int4 takes the packed rows of `source`, the file that it came from."""
    with torch.device("meta"):
        ready = Llama(model.config)
    dtype = torch.float32 if form == "fp32" else torch.bfloat16
    ready.load_state_dict({name: tensor.detach().to(dtype) for name, tensor in _outside(model).items()}, False, True)
    for number, (block, into) in enumerate(zip(model.blocks, ready.blocks, strict=True)):
        for stem in GGUF_STEMS:
            layer = block.get_submodule(stem)
            if not stem.startswith("norm"):
                made = _int4(source, model, number, stem, layer) if form == "int4" else pack(*_parts(layer), form)
                into.set_submodule(stem, made, strict=True)
    # The output projection in 8 bits is slower than in bf16 at every width, so int4 and int8 leave it there.
    head = (model.embedding if model.head is None else model.head).get_parameter("weight")
    ready.head = pack(head.detach(), None, "fp32" if form == "fp32" or bf16_refusal() else "bf16")
    return ready.eval().requires_grad_(False)


def pack_linears(module: nn.Module, form: Format) -> nn.Module:
    """The same module with its linear maps in a format and the rest in the type that goes with it (a drafter)."""
    module.to(torch.float32 if form == "fp32" else torch.bfloat16)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear):
            module.set_submodule(name, pack(*_parts(layer), form), strict=True)
    return module.eval().requires_grad_(False)


def weight_bytes(model: nn.Module) -> int:
    """Bytes that one pass of a prepared model reads: its linear maps (of the embedding it reads single rows)."""
    return sum(getattr(module, "bytes", 0) for module in model.modules())


def _outside(model: Llama) -> dict[str, Tensor]:
    """Everything that is not a linear map."""
    state = model.state_dict()
    return {name: state[name] for name in state if "norm" in name or name.startswith("embedding")}


def _parts(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    assert isinstance(layer, nn.Linear)
    return layer.weight.detach(), None if layer.bias is None else layer.bias.detach()


def _int4(source: GGUFFile | None, model: Llama, number: int, stem: str, layer: nn.Module) -> nn.Module:
    names = [f"blk.{number}.{name}.weight" for name in GGUF_STEMS[stem]]
    kinds = {source.format_of(name) if source else "no GGUF" for name in names}
    if source is None or kinds != {"Q4_1"} or getattr(layer, "bias", None) is not None:
        raise UsageError(
            f"weights in int4: {', '.join(names)} would have to be stored in Q4_1 without a bias, and are {', '.join(kinds)}. "
            "Allowed here: auto, fp32, bf16, int8."
        )
    rows = []
    for name in names:
        blocks = source.blocks(name)
        heads = {"attn_q": model.config.heads, "attn_k": model.config.kv_heads}.get(name.split(".")[-2])
        rows.append(blocks[gguf_rows(heads, model.config.width)] if heads else blocks)
    return Int4Linear(*unpack_q4_1(torch.cat(rows)))

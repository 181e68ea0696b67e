"""Quantised and packed Llama for decoding: linear maps in one weight format, the rest in the type of its activations.

    target = open_target("SmolLM2.gguf", "auto")                 auto: bf16, or fp32 where neither the CPU nor decode.cpp can
    target = open_target("SmolLM2.gguf", "int4")                 Q4_1 as it is stored, nothing quantised again
    target = open_target("Llama-3.1-8B/", "auto", "cuda")        bf16 on a GPU
    model = prepare(weights, "bf16")                             from Weights (export/weights.py): our names -> tensors

Lossless decoding means: the same text as this model without a drafter, in this format.
"""

from __future__ import annotations

import contextlib
import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from tenfold.errors import UsageError, WeightsError
from tenfold.export.weights import Weights, read
from tenfold.kernels import formats
from tenfold.kernels.formats import Format, Weight, on_device, pack, quickest
from tenfold.kernels.machine import choose_device
from tenfold.kernels.packed import PackedWeight
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.gguf_weights import GGUFLlama, open_llama, parameter
from tenfold.language.models.llama import Llama
from tenfold.nn.outline import outline

LINEAR = ("attention.qkv", "attention.out", "ffn.gate_up", "ffn.down")  # of a block
DeviceChoice = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Target:
    """`model` decodes, in `form`; `source` is what its file holds, by which a drafter knows its target: of a GGUF file a tensor
    is read when it is asked for, of another the embedding, the norms and the first block are kept."""

    model: Llama
    form: Format
    source: Weights


def open_target(path: str | Path, form: Format = "auto", device: DeviceChoice = "auto") -> Target:
    """The model in a file or folder, ready for decoding. Raises UsageError where the format or the device cannot be had,
    WeightsError where the file cannot be read or is not a Llama.

    A GGUF file goes from its own format to `form` tensor by tensor: at its highest the memory is the prepared model and one
    tensor more."""
    place = choose_device(device)
    chosen = format_on(form, place)
    if Path(path).suffix == ".gguf" and Path(path).is_file():
        held = open_llama(Path(path))
        source = Weights(held.config, held)
    else:
        family, weights = read(path)
        if not isinstance(weights.config, LlamaConfig):
            raise WeightsError(f"{path} is a {family.kind}; what decodes here is a llama.")
        # What stays is copied, so that nothing keeps the file mapped (its pages count as memory) when the rest is packed.
        source = Weights(weights.config, {n: t.clone() if _stays(n) else t for n, t in weights.state.items()})
        del weights
    c = source.config
    if c.memory_layers or c.activation != "swiglu":
        kind = "memory layers" if c.memory_layers else f"the activation {c.activation}"
        raise WeightsError(
            f"{path} has {kind}; the engine decodes plain Llamas (SwiGLU, no memory). tenfold.load(PATH) is the model itself."
        )
    if place.type == "cpu":
        target = Target(prepare(source, chosen, spend=True), chosen, source)
        _give_back()
        return target
    return Target(moved(source, chosen, place), chosen, source)


def format_on(form: Format, device: torch.device) -> Format:
    """The weight format on a device. Raises UsageError for an unknown one, and for one without a kernel there."""
    if form == "auto":
        return quickest() if device.type == "cpu" else "bf16"
    if device.type not in formats.entry(form).devices:
        allowed = ", ".join(["auto", *on_device(device.type)])
        raise UsageError(f"weights in {form}: no kernel for {device.type}. Allowed there: {allowed}.")
    return form


def moved(source: Weights, form: Format, device: torch.device) -> Llama:
    """The model on a GPU, tensor by tensor: the host never holds all of it in another format."""
    with outline():
        ready = Llama(source.config)
    state = {name: parameter(source.state, name, formats.entry(form).dtype).to(device) for name in ready.state_dict()}
    ready.load_state_dict(state, assign=True)
    return ready.eval().requires_grad_(False)


def prepare(source: Weights, form: Format, spend: bool = False) -> Llama:
    """A model that shares what it can with `source`, of which every parameter is asked for once. A format that is made from
    stored blocks (int4) takes them from a GGUF file. spend: linear maps leave `source` once they are packed, except those of
    the first block."""
    config, state = source.config, source.state
    with outline():
        ready = Llama(config)
    dtype = formats.entry(form).dtype
    embedding = parameter(state, "embedding.weight", dtype)
    norms = {name: parameter(state, name, dtype) for name in state if "norm" in name}
    # The linear maps come below, one at a time; a name that the model does not have would be a fault of ours.
    unknown = ready.load_state_dict({"embedding.weight": embedding, **norms}, strict=False, assign=True).unexpected_keys
    assert not unknown, unknown
    # The output projection in 8 bits is slower than in bf16 at every width, so int4 and int8 leave it there. It is the largest
    # map, so it comes first: packing holds it twice.
    wide = form if dtype == torch.float32 else quickest()
    if config.tied and dtype == formats.entry(wide).dtype:
        head = embedding
    else:
        head = parameter(state, "embedding.weight" if config.tied else "head.weight", formats.entry(wide).dtype)
    ready.head = pack(head, None, wide)
    del head
    if spend and isinstance(state, dict):
        state.pop("head.weight", None)
    for number, into in enumerate(ready.blocks):
        for stem in LINEAR:
            name = f"blocks.{number}.{stem}"
            into.set_submodule(stem, _packed(source, name, form), strict=True)
            if spend and not _stays(name) and isinstance(state, dict):
                del state[f"{name}.weight"]
    missing = [name for name, weight in ready.named_parameters() if weight.is_meta]
    assert not missing, missing
    return ready.eval().requires_grad_(False)


def pack_linears(module: nn.Module, form: Format) -> nn.Module:
    """The same module with its linear maps in a format and the rest in the type that goes with it (a drafter)."""
    module.to(formats.entry(form).dtype)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear):
            module.set_submodule(name, pack(*_parts(layer), form), strict=True)
    return module.eval().requires_grad_(False)


def weight_bytes(model: nn.Module) -> int:
    """Bytes that one pass of a model reads: its linear maps (of the embedding it reads single rows)."""
    maps = 0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            maps += module.weight.nbytes
        elif isinstance(module, PackedWeight):
            maps += module.bytes
    return maps + (model.embedding.weight.nbytes if isinstance(model, Llama) and model.head is None else 0)


def _stays(name: str) -> bool:
    """Whether a parameter is of use beside the prepared model: it is what a fingerprint is made of, or small."""
    return name.startswith(("embedding.", "blocks.0.")) or "norm" in name or name.endswith(".bias")


def _give_back() -> None:
    """Hands memory that was freed on the way back to the system; glibc keeps what packing has used: 130 MB for int4."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _parts(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    assert isinstance(layer, nn.Linear)
    return layer.weight.detach(), None if layer.bias is None else layer.bias.detach()


def _packed(source: Weights, name: str, form: Format) -> PackedWeight:
    """A linear map of a model's weights in a format: packed from the weight, or taken over from a GGUF file's blocks."""
    row, state, own = formats.entry(form), source.state, f"{name}.weight"
    bias = state.get(f"{name}.bias")
    if row.pack_blocks is None:
        return pack(state[own], bias, form)
    stored = state.formats(own) if isinstance(state, GGUFLlama) else {own: "not in a GGUF file"}
    if reason := row.refusal(Weight(inputs=0, bias=bias is not None, stored=stored)):
        made = [other for other in on_device("cpu") if formats.FORMATS[other].pack is not None]
        raise UsageError(f"weights in {form}: {reason}. Allowed here: {', '.join(['auto', *made])}.")
    assert isinstance(state, GGUFLlama)
    return row.pack_blocks(state.blocks(own))

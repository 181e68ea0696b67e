"""Weight formats for decoding (fp32, bf16, int8, int4 quantisation): the one table of names, and what each means.

    layer = pack(weight, bias, "bf16")                  a module, x (..., in) -> (..., out)
    refusal("int8", Weight.of(tensor))                  why a weight cannot have a format here, or None
    quickest()                                          what "auto" is on this CPU

A new format is one entry of FORMATS, and its kernel: a module of packed.py, in C++ where it is to be one call with the rest
(`PackedWeight.native`). Command-line flags, the engine and the benchmarks take their choices from this table, so importing it
loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tenfold.errors import UsageError, unknown_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tenfold.kernels.packed import PackedWeight

Format = str  # a name of FORMATS; where a choice is made "auto" too
GPU_ROWS = 64  # memory-bound rows on a GPU, in every format


@dataclass(frozen=True)
class Weight:
    """What a refusal looks at: a linear map that is not packed yet. `stored` holds the formats of its parts in a GGUF file."""

    inputs: int
    device: str = "cpu"
    bias: bool = False
    stored: Mapping[str, str] = field(default_factory=dict)  # GGUF's names of the parts -> their formats

    @staticmethod
    def of(weight: Tensor, bias: Tensor | None = None) -> Weight:
        return Weight(weight.shape[1], weight.device.type, bias is not None)


@dataclass(frozen=True)
class WeightFormat:
    """One row of the table.

    rows: memory-bound rows, those that a pass takes at little more than the price of one, by the bits of the SIMD registers of
    decode.cpp. takes: the GGUF format whose blocks become this one without being quantised again; such a format is made from
    blocks, every other one from a weight.
    """

    name: str
    summary: str
    activations: Literal["float32", "bfloat16"]  # of embeddings, norms and what flows between the maps
    rows: Mapping[int, int]
    devices: tuple[str, ...] = ("cpu", "cuda")
    refusal: Callable[[Weight], str | None] = lambda weight: None
    pack: Callable[[Tensor, Tensor | None], PackedWeight] | None = None
    takes: str = ""
    pack_blocks: Callable[[Tensor], PackedWeight] | None = None

    @property
    def dtype(self) -> torch.dtype:
        import torch

        return getattr(torch, self.activations)


def _fp32(weight: Tensor, bias: Tensor | None) -> PackedWeight:
    from tenfold.kernels.packed import PlainLinear

    return PlainLinear(weight.float(), None if bias is None else bias.float())


def _bf16(weight: Tensor, bias: Tensor | None) -> PackedWeight:
    """In the tiles of decode.cpp, else in oneDNN's own order for the CPU's bf16 units, else plain."""
    import torch

    from tenfold.kernels import decode
    from tenfold.kernels.packed import PlainLinear, ReorderedLinear, TiledLinear

    if weight.device.type == "cpu" and decode.refusal() is None and weight.shape[1] % 2 == 0:
        return TiledLinear(weight, bias)
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return PlainLinear(weight.bfloat16(), None if bias is None else bias.bfloat16())
    return ReorderedLinear(weight, bias)


def _bf16_refusal(weight: Weight) -> str | None:
    from tenfold.kernels import decode, machine

    if weight.device == "cpu" and (decode.refusal() or weight.inputs % 2):
        return machine.bf16_refusal()
    return None


def _int8(weight: Tensor, bias: Tensor | None) -> PackedWeight:
    from tenfold.kernels.packed import Int8Linear

    return Int8Linear(weight, bias)


def _int4(blocks: Tensor) -> PackedWeight:
    from tenfold.kernels.packed import Int4Linear, unpack_q4_1

    return Int4Linear(*unpack_q4_1(blocks))


def _int4_refusal(weight: Weight) -> str | None:
    if not weight.stored:
        return "4 bits are taken from a GGUF file in Q4_1, not made from other weights"
    if set(weight.stored.values()) != {"Q4_1"} or weight.bias:
        return (
            f"{', '.join(weight.stored)} would have to be stored in Q4_1 without a bias, and are "
            f"{', '.join(sorted(set(weight.stored.values())))}{' with a bias' if weight.bias else ''}"
        )
    return None


# Memory-bound rows come from milliseconds of 1, 4, 8, 17 rows of SmolLM2-135M on one core.
# AVX512_BF16 and VNNI: bf16 16, 16, 17, 28; int8 11, 11, 14, 31; int4 8, 9, 12, 26; fp32 61, 89, 103, 144
# AVX2:                 bf16 16, 20, 35, 67; int8 10, 16, 30, 60; int4 9, 14, 26, 46
FORMATS: dict[str, WeightFormat] = {}


def add(entry: WeightFormat) -> None:
    assert entry.name not in FORMATS, f"the weight format {entry.name!r} is there already"
    assert (entry.pack is None) == bool(entry.takes) == (entry.pack_blocks is not None), entry.name
    FORMATS[entry.name] = entry


add(WeightFormat("fp32", "as it is", "float32", {512: 8, 256: 8}, pack=_fp32))
add(WeightFormat("bf16", "half the bytes", "bfloat16", {512: 8, 256: 4}, refusal=_bf16_refusal, pack=_bf16))
add(
    WeightFormat(
        "int8",
        "a quarter of fp32; with decode.cpp groups of 32 with a scale, and inputs rounded alike",
        "bfloat16",
        {512: 8, 256: 2},
        devices=("cpu",),
        pack=_int8,
    )
)
add(
    WeightFormat(
        "int4",
        "groups of 32 with a scale and an offset, as GGUF's Q4_1 stores them; with decode.cpp inputs are rounded to 8 bits",
        "bfloat16",
        {512: 4, 256: 2},
        devices=("cpu",),
        refusal=_int4_refusal,
        takes="Q4_1",
        pack_blocks=_int4,
    )
)

if TYPE_CHECKING:
    FormatChoice = str
else:
    FormatChoice = Literal["auto", *FORMATS]  # the type of a flag: tyro lists its values


def entry(form: Format) -> WeightFormat:
    """The row of a format. Raises UsageError with the nearest name for an unknown one."""
    if form not in FORMATS:
        raise unknown_name("weight format", form, ["auto", *FORMATS])
    return FORMATS[form]


def on_device(device: str) -> list[Format]:
    """The formats that a kind of device ("cpu", "cuda") has."""
    return [name for name, row in FORMATS.items() if device in row.devices]


def refusal(form: Format, weight: Weight) -> str | None:
    """Why a weight cannot be in this format here, or None."""
    row = entry(form)
    if weight.device not in row.devices:
        return f"its kernel runs on {' and '.join(row.devices)}, the weights are on {weight.device}"
    return row.refusal(weight)


def pack(weight: Tensor, bias: Tensor | None, form: Format) -> PackedWeight:
    """A linear map in a format. Raises UsageError with the reason where it cannot be, and for a format that is made from
    stored blocks (`pack_blocks`)."""
    row, reason = entry(form), refusal(form, Weight.of(weight, bias))
    if reason is None and row.pack is None:
        reason = f"it is made only from blocks in {row.takes}"
    if reason:
        raise UsageError(f"weights in {form}: {reason}.")
    assert row.pack is not None
    return row.pack(weight, bias)


def quickest() -> Format:
    """The smallest lossless format in which this CPU multiplies a few rows by a weight quickly."""
    from tenfold.kernels import decode, machine

    return "fp32" if decode.refusal() and machine.bf16_refusal() else "bf16"


def memory_bound_rows(form: Format, device: str = "cpu") -> int:
    """Rows that a pass takes at little more than the price of one, so that draft tokens up to here cost next to nothing."""
    from tenfold.kernels import decode

    return GPU_ROWS if device != "cpu" else entry(form).rows[256 if decode.lanes() == 256 else 512]

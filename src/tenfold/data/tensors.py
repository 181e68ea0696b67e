"""Safetensors files: the header is checked here before any tensor is touched, and tenfold's own layout is written here.

    tensors, metadata = read_safetensors(path)
    save_own(path, state, "vit", config)           own names; the configuration travels in the file's metadata

Format: eight bytes with the header's length, the header (JSON: name -> dtype, shape, data_offsets), the tensors' bytes.
The released reader checks most of this too; ours runs first so that a hostile header costs no memory and every refusal
is a WeightsError that names the file and the entry.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tenfold.data.atomic import aside
from tenfold.errors import WeightsError

HEADER_LIMIT = 16 << 20  # bytes; about 100,000 tensors. A 7-billion-parameter model needs 0.1 MB
DTYPES_BY_BITS = {
    8: "BOOL U8 I8 F8_E4M3 F8_E5M2",
    16: "U16 I16 F16 BF16",
    32: "U32 I32 F32",
    64: "U64 I64 F64 C64",
}
DTYPE_BITS = {name: bits for bits, names in DTYPES_BY_BITS.items() for name in names.split()}
OWN_KEY = "tenfold"  # the metadata entry of our own layout: JSON {"kind": ..., "config": {...}}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors, mapped from the file rather than read, and the metadata. Raises WeightsError for a broken file."""
    from safetensors import SafetensorError, safe_open

    metadata = check_header(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error}).") from error


def check_header(path: Path) -> dict[str, str]:
    """Raises WeightsError unless every tensor has a known type and its own bytes, all of them inside the file.

    Returns the metadata.
    """
    try:
        with path.open("rb") as file:
            total = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if total < 8 or length > min(total - 8, HEADER_LIMIT):
                raise WeightsError(
                    f"{path}: the header claims {length:,} bytes; the file has {total:,} and at most {HEADER_LIMIT:,} "
                    "are read. The file is cut short or not safetensors."
                )
            raw = file.read(length)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error}).") from error
    entries = _parse(path, raw)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise WeightsError(f"{path}: __metadata__ is not a table of strings.")
    ranges = sorted((*_byte_range(path, name, entry), name) for name, entry in entries.items())
    position = 0
    for begin, end, name in ranges:
        if begin != position:
            what = "overlaps the tensor before it" if begin < position else "leaves a hole before it"
            raise WeightsError(f"{path}: tensor {name!r} at bytes {begin} to {end} {what} (which ends at {position}).")
        position = end
    if position != total - 8 - length:
        raise WeightsError(f"{path}: the tensors end at byte {position}, the file holds {total - 8 - length}.")
    return metadata


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a name stands in it twice")
        return table

    try:
        entries = json.loads(raw, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: the header is not valid JSON ({error}).") from error
    if not isinstance(entries, dict):
        raise WeightsError(f"{path}: the header is not a table of tensors.")
    return entries


def _byte_range(path: Path, name: str, entry: Any) -> tuple[int, int]:
    def natural(values: Any) -> bool:
        return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 62 for v in values)

    if not isinstance(entry, dict) or entry.get("dtype") not in DTYPE_BITS:
        kind = entry.get("dtype") if isinstance(entry, dict) else entry
        raise WeightsError(f"{path}: tensor {name!r} has the unknown type {kind!r}; known are {', '.join(DTYPE_BITS)}.")
    shape, offsets = entry.get("shape", ()), entry.get("data_offsets", ())
    if not natural(shape) or not natural(offsets) or len(offsets) != 2:
        raise WeightsError(f"{path}: tensor {name!r} has no proper shape and offsets ({shape!r}, {offsets!r}).")
    needed = math.prod(shape) * DTYPE_BITS[entry["dtype"]] // 8
    if offsets[1] - offsets[0] != needed:
        raise WeightsError(
            f"{path}: tensor {name!r} of shape {shape} needs {needed} bytes; its offsets {offsets} give "
            f"{offsets[1] - offsets[0]}."
        )
    return offsets[0], offsets[1]


def write_safetensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes straight to `path`; wrap it in `aside` for a final name."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in state.items():
        tensor = _alone(tensor)
        place = tensor.untyped_storage().data_ptr()
        tensors[name] = (
            tensor.clone() if place in seen else tensor
        )  # safetensors also refuses one tensor under two names
        seen.add(place)
    try:
        save_file(tensors, path, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:  # it wraps the system's errors, a full disk among them
        if "os error 28" in str(error):
            raise OSError(28, os.strerror(28), str(path)) from error
        raise OSError(str(error)) from error


def own_metadata(kind: str, config: Any) -> dict[str, str]:
    """The metadata entry that makes a safetensors file tenfold's own. `config`: a dataclass, or its plain values."""
    values = dataclasses.asdict(config) if dataclasses.is_dataclass(config) and not isinstance(config, type) else config
    return {OWN_KEY: json.dumps({"kind": kind, "config": values}, default=str)}


def save_own(path: Path, state: Mapping[str, Tensor], kind: str, config: Any) -> Path:
    """Writes weights in tenfold's own layout, aside and then renamed; `tenfold.load` reads them back.

    `state` has the names of the model class that `kind` means ("vit", "llama").
    """
    with aside(path) as temporary:
        write_safetensors(temporary, state, own_metadata(kind, config))
    return path


def _alone(tensor: Tensor) -> Tensor:
    """A contiguous tensor on the CPU that shares no memory: safetensors refuses any other."""
    tensor = tensor.detach().cpu().contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()

"""GGUF files to named tensors and metadata, checked before anything is trusted.

    file = open_gguf("SmolLM2-135M-Instruct.Q4_1.gguf")
    file.metadata["llama.block_count"]           30
    file["blk.0.attn_q.weight"]                  fp32, dequantised now, in torch's order (rows, columns)
    file.tensor("token_embd.weight", bfloat16)   the same in another type, a few rows at a time
    file.blocks("blk.0.attn_q.weight")           the quantised bytes, one row of blocks per row of the weight

The header is read here, with every count, size and offset compared with the file, because a header can claim anything; the
arithmetic of the quantised formats is the `gguf` package's. Format: the GGUF specification of the ggml project, versions
2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tenfold.errors import MissingExtra, WeightsError, nearest

NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
AT_ONCE = 1 << 20  # numbers that are dequantised together: the arithmetic needs several times their bytes
TENSORS, FIELDS, NAME, DEPTH, AXES = 100_000, 100_000, 4096, 4, 4  # what a header may claim at most


@dataclass(frozen=True)
class Stored:
    """A tensor in the file: its shape in torch's order, ggml's number of its format, and where its bytes are."""

    shape: tuple[int, ...]
    format: int
    start: int
    size: int


class GGUFFile(Mapping[str, Tensor]):
    """See `open_gguf`. A tensor is read when it is asked for, and never kept."""

    def __init__(self, path: Path, data: mmap.mmap, metadata: dict[str, Any], stored: dict[str, Stored]) -> None:
        self.path, self.metadata, self.stored = path, metadata, stored
        self._data = data

    def __getitem__(self, name: str) -> Tensor:
        return self.tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def outline(self) -> dict[str, Tensor]:
        """Names and shapes alone, as tensors on the meta device."""
        return {name: torch.empty(stored.shape, device="meta") for name, stored in self.stored.items()}

    def format_of(self, name: str) -> str:
        """ "F32", "Q4_1", ... as ggml names them."""
        from gguf import GGMLQuantizationType

        return GGMLQuantizationType(self.stored[name].format).name

    def blocks(self, name: str) -> UInt8[Tensor, "rows row_bytes"]:
        """The bytes as they are, of a tensor of two axes."""
        stored = self.stored[name]
        return torch.from_numpy(self._raw(stored).reshape(stored.shape[0], -1).copy())

    def tensor(self, name: str, dtype: torch.dtype = torch.float32) -> Float[Tensor, "..."]:
        """Dequantised. Raises WeightsError for a format that the gguf package cannot read."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        stored = self.stored[name]
        kind = GGMLQuantizationType(stored.format)
        width = stored.shape[-1]
        raw = self._raw(stored).reshape(-1, stored.size // (int(np.prod(stored.shape)) // width))
        out = torch.empty(len(raw), width, dtype=dtype)
        step = max(1, AT_ONCE // width)
        for at in range(0, len(raw), step):
            rows = raw[at : at + step]
            try:
                wide = rows.view(np.float32) if kind == GGMLQuantizationType.F32 else dequantize(rows, kind)
            except NotImplementedError as error:
                raise WeightsError(
                    f"{self.path}: {name} has the format {kind.name}, which gguf cannot read."
                ) from error
            out[at : at + step] = torch.from_numpy(np.array(wide, np.float32))
        return out.view(stored.shape)

    def _raw(self, stored: Stored) -> np.ndarray:
        # Pages of the file that were read before count as memory of this process until they are given back.
        if hasattr(mmap, "MADV_DONTNEED"):
            self._data.madvise(mmap.MADV_DONTNEED)
        return np.frombuffer(self._data, np.uint8, stored.size, stored.start)


def open_gguf(path: Path) -> GGUFFile:
    """Raises WeightsError for a file that is cut, damaged or not GGUF; MissingExtra without the gguf package."""
    try:
        import gguf
    except ImportError as error:
        raise MissingExtra("gguf", "language", "it reads GGUF weights") from error
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}).") from error
    cursor = _Cursor(path, data)
    if data[:4] != b"GGUF":
        raise WeightsError(f"{path}: not a GGUF file (it begins with {data[:4]!r}).")
    cursor.at = 4
    version = cursor.number("<I")
    if version not in (2, 3):
        raise WeightsError(f"{path}: GGUF version {version}; known are 2 and 3, little-endian.")
    tensors, fields = cursor.number("<Q"), cursor.number("<Q")
    cursor.allow(tensors, TENSORS, "tensors")
    cursor.allow(fields, FIELDS, "fields")
    metadata: dict[str, Any] = {}
    for _ in range(fields):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.number("<I"))
    table = [_entry(cursor) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment > 1 << 20:
        raise WeightsError(f"{path}: an alignment of {alignment!r} bytes.")
    base = -(-cursor.at // alignment) * alignment
    sizes: dict[int, tuple[int, int]] = {int(k): v for k, v in gguf.GGML_QUANT_SIZES.items()}
    stored = {}
    for name, shape, kind, offset in table:
        if kind not in sizes or name in stored:
            raise WeightsError(f"{path}: {name!r} is there twice or has the unknown format {kind}.")
        block, block_bytes = sizes[kind]
        count = 1
        for side in shape:
            count *= side
        if shape[-1] % block or offset % alignment:
            raise WeightsError(f"{path}: {name!r} of shape {shape} does not fit its format's blocks of {block}.")
        size = count // block * block_bytes
        if base + offset + size > len(data):
            raise WeightsError(
                f"{path}: {name!r} ends at byte {base + offset + size:,}, the file at {len(data):,}: it is cut. Fetch it again."
            )
        stored[name] = Stored(shape, kind, base + offset, size)
    return GGUFFile(path, data, metadata, stored)


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string(NAME)
    axes = cursor.number("<I")
    cursor.allow(axes, AXES, "axes")
    sides = [cursor.number("<Q") for _ in range(axes)]
    if not sides or not all(0 < side < 1 << 40 for side in sides):
        raise WeightsError(f"{cursor.path}: {name!r} has the shape {sides[::-1]}.")
    return name, tuple(reversed(sides)), cursor.number("<I"), cursor.number("<Q")


class _Cursor:
    """Reads the header and never past the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at, self.end = path, data, 0, len(data)

    def number(self, code: str) -> Any:
        size = struct.calcsize(code)
        if self.at + size > self.end:
            raise self._cut()
        self.at += size
        return struct.unpack_from(code, self.data, self.at - size)[0]

    def string(self, limit: int | None = None) -> str:
        size = self.number("<Q")
        if size > self.end - self.at or (limit is not None and size > limit):
            raise self._cut()
        self.at += size
        return self.data[self.at - size : self.at].decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY or depth == DEPTH:
            raise WeightsError(f"{self.path}: a field of the unknown kind {kind}.")
        inner, count = self.number("<I"), self.number("<Q")
        if inner in NUMBERS:
            code = NUMBERS[inner]
            size = struct.calcsize(code) * count
            if size > self.end - self.at:
                raise self._cut()
            self.at += size
            return list(struct.unpack_from(f"<{count}{code[1]}", self.data, self.at - size))
        if count * 8 > self.end - self.at:  # a string or an array takes eight bytes at least
            raise self._cut()
        return [self.value(inner, depth + 1) for _ in range(count)]

    def allow(self, found: int, most: int, what: str) -> None:
        if found > most:
            raise WeightsError(f"{self.path}: the header claims {found:,} {what}; at most {most:,} are read.")

    def _cut(self) -> WeightsError:
        return WeightsError(
            f"{self.path}: the header at byte {self.at:,} claims more than the file holds: cut or damaged."
        )


def field(metadata: dict[str, Any], key: str, kind: type | tuple[type, ...], where: object) -> Any:
    """A field of the metadata that must be there and of this type."""
    if not isinstance(metadata.get(key), kind):
        close = nearest(key, metadata)
        raise WeightsError(
            f"{where}: the field {key} is missing or of the wrong type.{f' Is it {close}?' if close else ''}"
        )
    return metadata[key]

"""Safetensors files: what is written is read back bit for bit, and a hostile header is refused before a tensor is touched."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from refusals import refused
from tenfold.data.tensors import OWN_KEY, check_header, own_metadata, read_safetensors, save_own, write_safetensors
from tenfold.errors import StorageError, WeightsError
from tenfold.nn.rope import RopeScaling


def header(table: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


SAFETENSORS = {
    "overlap": header({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
    "same bytes twice": header({"a": entry(0, 8, [2]), "b": entry(0, 8, [2])}, bytes(8)),
    "hole": header({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12)),
    "past the end": header({"a": entry(0, 4096, [1024])}, bytes(16)),
    "before the start": header({"a": entry(-4, 4, [2])}, bytes(8)),
    "backwards": header({"a": entry(8, 0, [2])}, bytes(8)),
    "another size": header({"a": entry(0, 8, [3])}, bytes(8)),
    "a huge shape": header({"a": entry(0, 8, [1 << 61, 1 << 61])}, bytes(8)),
    "a negative shape": header({"a": entry(0, 8, [-2])}, bytes(8)),
    "true as a number": header({"a": entry(0, 4, [True])}, bytes(4)),
    "unknown type": header({"a": entry(0, 8, [2], "F31")}, bytes(8)),
    "a list": header([1, 2]),
    "no JSON": header(b"{'a': 1}"),
    "a name twice": header(b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 4, [1])).encode(),) * 2), bytes(4)),
    "deep JSON": header(b'{"a":' + b"[" * 200_000),
    "4 GB header": header(b"{}", length=4 << 30),
    "2^64 header": header(b"{}", length=(1 << 64) - 1),
    "bytes left over": header({"a": entry(0, 4, [1])}, bytes(64)),
    "empty": b"",
    "seven bytes": b"1234567",
    "metadata of numbers": header({"__metadata__": {"a": 1}}),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_hostile_header_is_refused_and_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(SAFETENSORS[name])
    with refused(WeightsError, r"x\.safetensors"):
        read_safetensors(tmp_path / "x.safetensors")


def test_a_header_of_4_gb_that_is_really_there_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 4 << 30))
        file.truncate(5 << 30)  # sparse
    with refused(WeightsError, "header claims"):
        read_safetensors(path)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8, torch.int64, torch.bool]
)
def test_a_round_trip_keeps_every_bit_of_every_type(tmp_path: Path, dtype: torch.dtype) -> None:
    bits = torch.arange(48, dtype=torch.uint8) % 2 if dtype == torch.bool else torch.arange(48, dtype=torch.uint8) * 5
    tensor = bits.view(dtype).unflatten(0, (2, -1))
    write_safetensors(tmp_path / "a.safetensors", {"a": tensor, "empty": tensor[:0]}, {"note": "kept"})
    tensors, metadata = read_safetensors(tmp_path / "a.safetensors")
    assert tensors["a"].dtype == dtype
    assert torch.equal(tensors["a"].contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8))
    assert tensors["empty"].shape == (0, *tensor.shape[1:])
    assert metadata == {"format": "pt", "note": "kept"}


def test_tensors_that_share_memory_or_are_turned_are_written_as_their_values(tmp_path: Path) -> None:
    whole = torch.randn(4, 6)
    state = {"whole": whole, "again": whole, "turned": whole.t(), "column": whole[:, 1], "row": whole[2]}
    write_safetensors(tmp_path / "a.safetensors", state)
    tensors, _ = read_safetensors(tmp_path / "a.safetensors")
    assert all(torch.equal(tensors[name], state[name]) for name in state)


def test_the_own_layout_carries_its_kind_and_configuration(tmp_path: Path) -> None:
    path = save_own(tmp_path / "deep/own.safetensors", {"a": torch.ones(2)}, "llama", RopeScaling("linear", 2.0))
    text = check_header(path)[OWN_KEY]
    values = json.loads(text)
    assert values["kind"] == "llama"
    assert RopeScaling(**values["config"]) == RopeScaling("linear", 2.0)
    assert own_metadata("llama", values["config"]) == {OWN_KEY: text}  # a dataclass and its plain values say the same
    assert [child.name for child in path.parent.iterdir()] == ["own.safetensors"]


def test_a_folder_in_the_place_of_the_file_is_a_storage_error_and_stays(tmp_path: Path) -> None:
    (tmp_path / "own.safetensors").mkdir()
    with pytest.raises(StorageError, match=r"own\.safetensors"):
        save_own(tmp_path / "own.safetensors", {"a": torch.ones(2)}, "vit", {})
    assert [child.name for child in tmp_path.iterdir()] == ["own.safetensors"]


def test_a_file_of_the_released_writer_passes_the_check(tmp_path: Path) -> None:
    save_file({"b": torch.ones(3), "a": torch.zeros(2, 2)}, tmp_path / "x.safetensors", metadata={"from": "elsewhere"})
    assert check_header(tmp_path / "x.safetensors") == {"from": "elsewhere"}
    with pytest.raises(WeightsError, match="cannot be read"):
        check_header(tmp_path / "absent.safetensors")

"""Weights files to named tensors, without trusting a byte of them and without caring whose layout it is.

    source = open_source(path_or_hub_id)           Source(tensors, metadata, config, side, path)

A source is a `.safetensors` file, a `.pth`/`.pt`/`.bin` file of torch, a GGUF file (dequantised to fp32 as it is read), a
Hugging Face folder (one file or shards with an index), a run folder, the name of weights that ship with tenfold, or the id
of a model on the Hugging Face hub. Pickle goes through torch's `weights_only` reader alone, which builds tensors and
containers and calls nothing else; archives are measured before they are opened.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.data.tensors import OWN_KEY, read_safetensors
from tenfold.errors import UsageError, WeightsError, nearest
from tenfold.export.gguf import open_gguf

JSON_LIMIT = 16 << 20  # bytes of a config.json or an index
PICKLE_LIMIT = 64 << 20  # bytes of the pickle inside a torch archive: names and shapes, never the numbers
ENTRIES_LIMIT = 200_000  # members of a torch archive: one per tensor
SAFE, TORCH, GGUF = (".safetensors",), (".pth", ".pt", ".bin"), ".gguf"
SIDE = "tenfold.safetensors"  # beside another layout: what that layout has no place for
FOLDER_FILES = ("final.safetensors", "model.safetensors", "pytorch_model.bin")
ASSETS = Path(__file__).parents[1] / "assets"  # NAME.safetensors, each with its card NAME.md
WRAPPERS = ("teacher", "state_dict", "model")  # what a training checkpoint keeps its weights under, in this order


@dataclass(frozen=True)
class Source:
    """What was found: tensors by their names in the file, and what stood beside them. Those of a GGUF file are dequantised
    again whenever they are asked for."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)  # config.json
    preprocessor: dict[str, Any] = field(default_factory=dict)  # preprocessor_config.json
    side: dict[str, Tensor] = field(default_factory=dict)
    side_metadata: dict[str, str] = field(default_factory=dict)
    gguf: dict[str, Any] = field(default_factory=dict)  # a GGUF file's fields
    hints: dict[str, Any] = field(default_factory=dict)  # configuration hints: fields that the files leave open


def open_source(source: str | Path) -> Source:
    """Raises WeightsError for a file that is absent, broken or unsafe; UsageError for a hub id that cannot be fetched."""
    path = weights_path(source)
    if path.is_dir():
        tensors, metadata = _read_folder(path)
        return _with_companions(path, path, tensors, metadata)
    if path.suffix == GGUF:
        opened = open_gguf(path)
        return Source(path, opened, gguf=opened.metadata)
    tensors, metadata = read_file(path)
    return _with_companions(path, path.parent if path.name in FOLDER_FILES else None, tensors, metadata)


def weights_path(source: str | Path) -> Path:
    """The path of weights: as given, of those that ship by this name, or where the hub's lie once fetched. Raises as
    `open_source` does."""
    path = Path(source)
    if path.exists():
        return path
    if str(source) in shipped():
        return ASSETS / f"{source}.safetensors"
    return _from_hub(str(source)) if _is_hub_id(path) else _absent(path)


def shipped() -> list[str]:
    """Names of the weights that come with tenfold."""
    return sorted(path.stem for path in ASSETS.glob("*.safetensors"))


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of one file, by its ending."""
    if path.suffix in SAFE:
        return read_safetensors(path)
    if path.suffix in TORCH:
        return read_torch(path), {}
    raise WeightsError(f"{path}: the ending says the format; known are {', '.join((*SAFE, *TORCH, GGUF))} and folders.")


def read_json(path: Path) -> dict[str, Any]:
    """A bounded JSON object; WeightsError when it is something else."""
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise WeightsError(f"{path}: {path.stat().st_size:,} bytes of JSON; at most {JSON_LIMIT:,} are read.")
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: expected a JSON object.")
    return values


def read_torch(path: Path) -> dict[str, Tensor]:
    """Tensors of a `torch.save` file. Nothing in it is executed: an object other than tensors is a WeightsError."""
    try:
        archive = zipfile.is_zipfile(path)
        if archive:
            _measure_archive(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"asks to call {asked[1]}" if asked else "is damaged or holds more than tensors"
        raise WeightsError(f"{path}: the pickle in it {what}. Nothing was run and nothing was loaded.") from error
    except WeightsError:
        raise
    except Exception as error:  # torch's readers raise whatever a damaged file makes them stumble over
        raise WeightsError(f"{path}: not a readable torch file ({_first_line(error)}).") from error
    limit = path.stat().st_size
    tensors = _unwrap(path, loaded)
    for name, tensor in tensors.items():
        needed = tensor.numel() * tensor.element_size()
        # A tensor may be a view, but never of more than the file holds: strides of 0 make terabytes out of four bytes.
        if tensor.device.type != "cpu" or tensor.layout != torch.strided or needed > limit:
            raise WeightsError(f"{path}: {name!r} of shape {tuple(tensor.shape)} is not stored in the file.")
    return tensors


def _measure_archive(path: Path) -> None:
    size = path.stat().st_size
    try:
        members = zipfile.ZipFile(path).infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise WeightsError(f"{path}: a broken archive ({error}).") from error
    claimed = sum(member.file_size for member in members)
    # torch stores and never compresses, so an archive that claims more than its own size is a bomb.
    if len(members) > ENTRIES_LIMIT or claimed > size or any(m.compress_type != zipfile.ZIP_STORED for m in members):
        raise WeightsError(
            f"{path}: {len(members):,} members claim {claimed:,} bytes in a file of {size:,}. torch never compresses its "
            "archives: this is not one, and it was not unpacked."
        )
    for member in members:
        if member.filename.endswith("data.pkl") and member.file_size > PICKLE_LIMIT:
            raise WeightsError(f"{path}: a pickle of {member.file_size:,} bytes; at most {PICKLE_LIMIT:,} are read.")


def _unwrap(path: Path, loaded: Any) -> dict[str, Tensor]:
    for name in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            loaded = loaded[name]
            break
    if not isinstance(loaded, dict) or not loaded:
        raise WeightsError(f"{path}: holds a {type(loaded).__name__}, not named tensors.")
    others = [str(k) for k, v in loaded.items() if not isinstance(v, Tensor) or not isinstance(k, str)]
    if others:
        raise WeightsError(
            f"{path}: not tensors: {', '.join(others[:8])}{' ...' if len(others) > 8 else ''}. Known wrappers are "
            f"{', '.join(WRAPPERS)}."
        )
    return dict(loaded)


def _read_folder(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return read_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index), {}
    if (folder / "metrics.jsonl").exists():
        raise WeightsError(f"{folder}: this run is not finished. Type: tenfold train --resume {folder}")
    held = sorted(child.name for child in folder.iterdir())[:8]
    raise WeightsError(
        f"{folder}: no weights in it (looked for {', '.join(FOLDER_FILES)} and their .index.json). "
        f"It holds: {', '.join(held) or 'nothing'}."
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
        raise WeightsError(f"{index}: no weight_map from names to files.")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(table.values())):
        if Path(shard).name != shard or shard in ("", "..") or Path(shard).suffix not in SAFE + TORCH:
            raise WeightsError(f"{index}: {shard!r} is not the name of a weights file beside it.")
        file = index.parent / shard
        if not file.is_file():
            raise WeightsError(f"{index}: the shard {shard} is missing. Fetch it and try again.")
        tensors |= {name: tensor for name, tensor in read_file(file)[0].items() if table.get(name) == shard}
    absent = sorted(set(table) - set(tensors))
    if absent:
        raise WeightsError(f"{index}: not in their shards: {', '.join(absent[:8])}{' ...' if len(absent) > 8 else ''}.")
    return tensors


def _with_companions(path: Path, folder: Path | None, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Source:
    if folder is None or OWN_KEY in metadata:  # our own layout says everything itself
        return Source(path, tensors, metadata)
    side, side_metadata = read_safetensors(folder / SIDE) if (folder / SIDE).is_file() else ({}, {})
    config, preprocessor = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("config.json", "preprocessor_config.json")
    )
    return Source(path, tensors, metadata, config, preprocessor, side, side_metadata)


def _is_hub_id(path: Path) -> bool:
    """owner/name, unless a folder `owner` stands here: then it is a mistyped path, and the network is left alone."""
    named = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", str(path)) and path.suffix not in (*SAFE, *TORCH, GGUF)
    return bool(named) and not path.parent.exists()


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UsageError(
            f"{name} is not a path here, and huggingface_hub, which fetches models by id, is not installed. "
            "Type: pip install huggingface_hub, or give a file or folder."
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "pytorch_model*.bin"]))
    except Exception as error:  # the hub client's family of errors is wide: offline, not found, gated
        raise UsageError(
            f"{name} is not a path here and could not be fetched as a hub id ({_first_line(error)})."
        ) from error


def _absent(path: Path) -> Path:
    folder = path.parent
    here = [child.name for child in folder.iterdir()] if folder.is_dir() else []
    ours = shipped() if str(path) == path.name and not path.suffix else []  # a bare word may be meant as a name
    close = nearest(path.name, [*here, *ours])
    raise WeightsError(
        f"{path}: no such file or folder.{f' Did you mean {folder / close}?' if close else ''}"
        + (f" Weights that ship with tenfold: {', '.join(ours)}." if ours else "")
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

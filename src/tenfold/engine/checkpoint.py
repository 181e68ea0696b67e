"""Checkpoints that survive a kill at any moment, a flipped bit and another number of ranks.

    store = CheckpointStore(run_folder, place, config_hash=config_hash(recipe))
    store.save(step, tensors, state)           # run_folder/step-STEP
    found = store.newest()                     # (step, path) of the newest complete one, or None
    state = store.load(path, tensors)          # in place; `wanted(path)` lists what it holds

A checkpoint is a folder: one safetensors file per rank (torch.distributed.checkpoint's planner and storage, so shards are
joined or split for another number of ranks), `rank-R.json` (random state), `state.json`, and `manifest.json` with the
size and SHA-256 of each. It is written as `.tmp-STEP-PID`, flushed, and renamed; only then are older ones removed, and
never the newest two. Discovery trusts manifests alone. Nothing in it is pickle, so a hostile one can run nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from tenfold.data.atomic import sync_folder
from tenfold.engine.parallel import Place
from tenfold.errors import CheckpointError, storage_error

log = logging.getLogger("tenfold")
MANIFEST = "manifest.json"


class CheckpointStore:
    """The checkpoints of one run folder. Every method is called on every rank."""

    def __init__(self, folder: Path, place: Place, config_hash: str, keep: int = 2) -> None:
        self.folder, self.place, self.config_hash, self.keep = folder, place, config_hash, max(2, keep)

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Writes step-`step` and removes what is older than the newest `keep`. Raises StorageError when writing fails;
        the older checkpoints are then as they were."""
        final = self.folder / f"step-{step}"
        aside = self.folder / self._agree(f".tmp-{step}-{os.getpid()}")
        error: OSError | None = None
        try:
            aside.mkdir(parents=True, exist_ok=True)
            self.place.barrier()
            _write_shards(aside, tensors, self.place)
            random = {kind: value.numpy().tobytes().hex() for kind, value in random_state(self.place).items()}
            _write_json(aside / f"rank-{self.place.rank}.json", {"random": random})
            if self.place.first:
                _write_json(aside / "state.json", {"step": step, **state})
        except OSError as failed:
            error = failed
        if not self._failed(error):
            error = self._seal(step, aside, final)
        if self._failed(error):
            if self.place.first:
                shutil.rmtree(aside, ignore_errors=True)
            raise storage_error(final, error or OSError("another rank failed to write"))
        return final

    def _seal(self, step: int, aside: Path, final: Path) -> OSError | None:
        """Manifest, rename, purge; hashing is shared out among the ranks."""
        try:
            files = sorted(p.name for p in aside.iterdir())
            mine = {name: _fingerprint(aside / name) for name in files[self.place.rank :: self.place.world]}
            entries = self._gather(mine)
            if self.place.first:
                body = {
                    "step": step,
                    "world": self.place.world,
                    "config": self.config_hash,
                    "torch": torch.__version__,
                    "files": {name: entries[name] for name in files},
                }
                _write_bytes(aside / MANIFEST, _sealed(body))
                sync_folder(aside)
                if final.exists():  # the same step again, after a resume: the new one takes its place
                    self._remove(final)
                aside.rename(final)
                sync_folder(self.folder)
                for _, old in self._steps()[self.keep :]:
                    self._remove(old)
        except OSError as failed:
            return failed
        return None

    def newest(self) -> tuple[int, Path] | None:
        """The newest checkpoint whose every file matches its manifest. A damaged one is named in a warning and passed
        over. A checkpoint of another configuration is a CheckpointError."""
        found = self._agree(self.newest_whole() if self.place.first else "")
        if not found:
            return None
        path = self.folder / found
        theirs = _read_manifest(path)["config"]
        if theirs != self.config_hash:
            raise CheckpointError(
                f"{path} was written by another configuration ({theirs[:12]}, this one is {self.config_hash[:12]}). "
                f"Train into another folder, or restore the run's config.json."
            )
        return int(found.removeprefix("step-")), path

    def newest_whole(self) -> str:
        """Name of the newest checkpoint that matches its manifest, whatever its configuration; empty without one."""
        for _, path in self._steps():
            problem = self.damage(path)
            if problem is None:
                return path.name
            log.warning("%s is damaged (%s); the one before it is used.", path, problem)
        return ""

    def damage(self, path: Path) -> str | None:
        """Which file of a checkpoint differs from its manifest, in words; None when it is whole."""
        try:
            manifest = _read_manifest(path)
            for name, (size, digest) in manifest["files"].items():
                if not (path / name).is_file():
                    return f"{name} is missing"
                if (path / name).stat().st_size != size:
                    return f"{name} has {(path / name).stat().st_size} bytes instead of {size}"
                if _fingerprint(path / name)[1] != digest:
                    return f"the SHA-256 of {name} differs"
        except CheckpointError as error:
            return str(error)
        except OSError as error:
            return f"it cannot be read: {error}"
        return None

    def wanted(self, path: Path) -> list[str]:
        """Names of the tensors in a checkpoint."""
        return list(HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata)

    def load(self, path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Reads a verified checkpoint into `tensors`, restores the random state, and returns `state`. Missing,
        unexpected and misshaped tensors are all listed in a CheckpointError."""
        saved = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
        problems = [f"missing {n}" for n in tensors.keys() - saved.keys()]
        problems += [f"unexpected {n}" for n in saved.keys() - tensors.keys()]
        for name in tensors.keys() & saved.keys():
            entry = saved[name]
            size = tuple(entry.size) if isinstance(entry, TensorStorageMetadata) else ()
            if size != tuple(tensors[name].shape):
                problems.append(f"{name} is {size}, the model has {tuple(tensors[name].shape)}")
        if problems:
            raise CheckpointError(f"{path} does not fit this model:\n  " + "\n  ".join(sorted(problems)))
        try:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # as in saving
                dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=self.place.world == 1)
        except CheckpointException as error:  # derives from BaseException
            raise CheckpointError(f"{path} cannot be read: {_causes(error)}.") from None
        state = json.loads((path / "state.json").read_bytes())
        own = path / f"rank-{self.place.rank}.json"  # a new rank takes the first one's random state
        random = json.loads((own if own.exists() else path / "rank-0.json").read_bytes())["random"]
        as_tensors = {k: torch.frombuffer(bytearray.fromhex(v), dtype=torch.uint8) for k, v in random.items()}
        set_random_state(as_tensors, self.place)
        return state

    def clear_leftovers(self) -> None:
        """Removes what killed writers left behind. The caller holds the folder's lock."""
        if self.place.first:
            for path in [*self.folder.glob(".tmp-*"), *self.folder.glob(".old-*")]:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        self.place.barrier()

    def _steps(self) -> list[tuple[int, Path]]:
        """Checkpoint folders, newest first."""
        found = [(p.name.removeprefix("step-"), p) for p in self.folder.glob("step-*") if p.is_dir()]
        return sorted(((int(step), path) for step, path in found if step.isdigit()), reverse=True)

    def _remove(self, path: Path) -> None:
        """Renamed first: a half-removed folder must not look like a checkpoint."""
        doomed = path.with_name(f".old-{path.name}-{os.getpid()}")
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def _failed(self, error: OSError | None) -> bool:
        return self.place.any(error is not None)

    def _agree(self, word: str) -> str:
        """Rank 0's word, on every rank."""
        if self.place.world == 1:
            return word
        words = [word]
        dist.broadcast_object_list(words, src=0)
        return words[0]

    def _gather(self, mine: dict[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
        if self.place.world == 1:
            return mine
        parts: list[dict[str, tuple[int, str]]] = [{} for _ in range(self.place.world)]
        dist.all_gather_object(parts, mine)
        return {name: entry for part in parts for name, entry in part.items()}


def read_model(run: Path) -> dict[str, Tensor]:
    """The model's tensors in the newest whole checkpoint of another run, by their names in that run's model. Raises
    CheckpointError when the folder has none."""
    found = CheckpointStore(run, Place(0, 1, torch.device("cpu")), "").newest_whole() if run.is_dir() else ""
    if not found:
        raise CheckpointError(f"{run} holds no whole checkpoint to start from.")
    reader = HuggingFaceStorageReader(str(run / found))
    saved = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in saved.items()
        if name.startswith("model.") and isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # without a process group
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    return {name.removeprefix("model."): value for name, value in tensors.items()}


def newest_state(run: Path) -> dict[str, Any] | None:
    """`state` of the newest whole checkpoint of a run, without its tensors; None when the folder has none."""
    found = CheckpointStore(run, Place(0, 1, torch.device("cpu")), "").newest_whole()
    return json.loads((run / found / "state.json").read_bytes()) if found else None


def _write_shards(folder: Path, tensors: Mapping[str, Tensor], place: Place) -> None:
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # without a process group
            dcp.save(dict(tensors), storage_writer=writer, no_dist=place.world == 1)
    except CheckpointException as error:
        failed = [failure for failure, _ in error.failures.values()]  # an exception and where it was raised
        raise next((e for e in failed if isinstance(e, OSError)), OSError(_causes(error))) from None


def _causes(error: CheckpointException) -> str:
    return "; ".join(f"rank {rank}: {failure}" for rank, (failure, _) in error.failures.items())


def random_state(place: Place) -> dict[str, Tensor]:
    """torch's generators of this process."""
    state = {"cpu": torch.get_rng_state()}
    if place.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(place.device)
    return state


def set_random_state(state: Mapping[str, Tensor], place: Place) -> None:
    """Restores `random_state`; a generator that this process does not have is left out."""
    torch.set_rng_state(state["cpu"])
    if place.device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], place.device)


def _fingerprint(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return path.stat().st_size, digest


def _canonical(body: object) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"))


def _sealed(body: Mapping[str, Any]) -> bytes:
    """The manifest carries its own digest: a flipped bit in it is found too."""
    digest = hashlib.sha256(_canonical(body).encode()).hexdigest()
    return _canonical({"body": body, "sha256": digest}).encode()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        content = (path / MANIFEST).read_bytes()
        body = json.loads(content)["body"]
    except FileNotFoundError:
        raise CheckpointError(f"{MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{MANIFEST} is not readable") from None
    if not isinstance(body, dict) or _sealed(body) != content:
        raise CheckpointError(f"{MANIFEST} does not match its own digest")
    return body


def _write_json(path: Path, value: object) -> None:
    _write_bytes(path, json.dumps(value).encode())


def _write_bytes(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

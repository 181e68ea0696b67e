"""Folders that the last version wrote go on: an unfinished curation, run folders, and final weights.

The folders are in tests/data/last_version (its README says how they were made). They are used with the working folder of
their place, because their journals hold `/proc/self/cwd/...`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import tenfold

SAVED = Path(__file__).parent / "data/last_version/folders.tar.xz"
CURATE = (
    "vision curate pixels --pool /proc/self/cwd/pool --out /proc/self/cwd/curated --target 6 --threshold 0.9 --levels 3 "
    "--k 4 --shard-rows 5"
)
KINDS = {"vision": "VisionTransformer", "language": "LanguageModel"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with tarfile.open(SAVED) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def tenfold_command(place: Path, words: str) -> str:
    """Runs it in `place`; what it said on standard error."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "tenfold", *words.split()]
    result = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stderr


def steps(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found if "loss" in row]


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="this machine has no /proc for the folder's paths")
def test_an_unfinished_curation_goes_on_and_ends_in_the_manifest_of_an_undisturbed_one(place: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in place.glob("curated/**/*.parquet")}
    tenfold_command(place, CURATE)
    made = pq.read_table(place / "curated/manifest.parquet")
    assert made.equals(pq.read_table(place / "expected/manifest.parquet"))
    report, expected = (json.loads((place / name / "report.json").read_text()) for name in ("curated", "expected"))
    assert report == expected
    again = {path for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert len(before) == 7
    assert not again, "finished shards were made once more"
    header = json.loads((place / "curated/copies/pool/journal.jsonl").read_text().splitlines()[0])
    assert header["function"] == "tenfold.vision.embeddings:embed_rows"


@pytest.mark.parametrize("run", sorted(KINDS))
def test_a_run_goes_on_from_its_checkpoint_and_ends_as_if_never_stopped(place: Path, run: str) -> None:
    tenfold_command(place, f"train --resume {run}")
    expected = steps(place / f"expected/{run}.jsonl")
    assert len(expected) == 4
    for row, other in zip(steps(place / run / "metrics.jsonl"), expected, strict=True):
        assert row == pytest.approx(other, rel=1e-3)  # the machine that wrote it may round otherwise
    model = tenfold.load(place / run)
    assert type(model).__name__ == KINDS[run]
    final = load_file(place / f"expected/{run}-final.safetensors")
    state = model.state_dict()
    assert all(
        torch.allclose(state[name].float(), value.float(), rtol=1e-2, atol=1e-3) for name, value in final.items()
    )


@pytest.mark.parametrize("run", sorted(KINDS))
def test_final_weights_of_the_last_version_load(place: Path, run: str) -> None:
    path = place / f"expected/{run}-final.safetensors"
    state = tenfold.load(path).state_dict()
    saved = load_file(path)
    assert state.keys() == saved.keys()
    assert all(state[name].equal(value) for name, value in saved.items())

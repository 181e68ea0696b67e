"""Provenance: the commit and the machine beside a number are those of git, of the processor and of torch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import torch

import tenfold
from tenfold.engine.provenance import commit, machine, version

ROOT = Path(tenfold.__file__).resolve().parent


def git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_commit_is_that_of_the_checkout_and_says_whether_files_differ() -> None:
    head = git("rev-parse", "HEAD")
    if head.returncode:  # an unpacked archive
        assert commit() == "unknown"
        return
    name, dirty = commit().removesuffix("-dirty"), commit().endswith("-dirty")
    assert git("rev-parse", f"{name}^{{commit}}").stdout == head.stdout
    assert dirty == bool(git("status", "--porcelain", "--untracked-files=no").stdout)


def test_the_machine_names_processor_cores_and_torch() -> None:
    said = machine()
    assert f"{os.cpu_count()} cores" in said
    assert said.endswith(f"torch {torch.__version__}")
    assert torch.backends.cpu.get_cpu_capability() in said
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    assert not names or said.startswith(names[0].split(": ", 1)[1])


def test_the_version_is_the_package_s() -> None:
    assert version() == tenfold.__version__

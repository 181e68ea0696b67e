"""Provenance of a number: the commit and the machine that are beside every figure and in every run folder."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from pathlib import Path

from tenfold.kernels.machine import processor, simd


def version() -> str:
    """The installed version of tenfold."""
    return importlib.metadata.version("tenfold")


def commit() -> str:
    """The checkout's commit, with a mark when files differ from it; `unknown` outside a checkout."""
    here = Path(__file__).resolve().parent
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10"], cwd=here, capture_output=True, text=True, check=False
    )
    return described.stdout.strip() if described.returncode == 0 else "unknown"


def machine() -> str:
    """Processor, cores and torch build."""
    import torch

    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{processor()} ({simd()}), {os.cpu_count()} cores{gpu}, torch {torch.__version__}"

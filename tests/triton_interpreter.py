"""Runs a test file as a program in which Triton interprets its kernels on the CPU: for machines without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def interpreted(file: str) -> None:
    """Fails when the program fails. Triton reads the variable when it is imported, so this needs a process of its own."""
    done = subprocess.run(
        [sys.executable, file], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.fail(done.stderr)

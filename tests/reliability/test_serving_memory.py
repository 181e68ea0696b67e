"""A model is read from its file straight into the format that decodes: the peak of memory is that format's and little more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tenfold.kernels.formats import quickest

PROGRAM = Path(__file__).parents[1] / "programs" / "peak_memory.py"
REST = 600_000_000  # bytes for Python, torch, the embedding, the drafter, the tokenizer and whatever loading needs on its way
needs_bf16 = pytest.mark.skipif(quickest() != "bf16", reason="this machine has no fast bf16")


@pytest.mark.samples
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="this machine has no /proc, where Linux says the peak"
)
@pytest.mark.parametrize(
    "form",
    [
        pytest.param("bf16", marks=needs_bf16),
        pytest.param("int4", marks=pytest.mark.slow),
        pytest.param("int8", marks=pytest.mark.slow),
        pytest.param("fp32", marks=pytest.mark.slow),
    ],
)
def test_the_peak_is_the_weights_in_their_format_the_pages_and_600_mb(form: str, smollm2: Path) -> None:
    environment = {**os.environ, "JAXTYPING_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(PROGRAM), str(smollm2), form, "1024"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tokens"] == 24
    assert found["peak"] <= found["weights"] + found["pages"] + REST, found
    print(f"{form}: {(found['peak'] - found['weights'] - found['pages']) / 1e6:.0f} MB beside weights and pages")

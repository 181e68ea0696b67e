"""What the machine can do has one answer: the cache folder, the device, bf16 units, and all who ask."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tenfold.errors import UsageError
from tenfold.kernels import machine


def test_the_cache_folder_is_the_variable_and_an_empty_one_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENFOLD_CACHE", "/some/folder")
    assert machine.cache_folder() == Path("/some/folder")
    monkeypatch.setenv("TENFOLD_CACHE", "")
    assert machine.cache_folder() == Path.home() / ".cache" / "tenfold"


def test_the_cache_folder_and_the_compiler_are_found_without_torch() -> None:
    code = (
        "import sys; from tenfold.kernels.machine import cache_folder, find_compiler; import tenfold.data.samples;"
        "cache_folder(), find_compiler(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_compiler_that_is_named_and_absent_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert machine.find_compiler() is None


def test_a_device_is_chosen_or_refused_with_the_name_that_the_user_gave() -> None:
    assert machine.choose_device("cpu").type == "cpu"
    with pytest.raises(UsageError, match="device 'gpu': allowed are auto, cpu, cuda"):
        machine.choose_device("gpu")
    if torch.cuda.is_available():
        assert machine.choose_device("auto", index=0) == torch.device("cuda", 0)
    else:
        assert machine.choose_device("auto") == torch.device("cpu")
        with pytest.raises(UsageError, match=r"trainer.device = 'cuda': this machine has no CUDA. Allowed here: auto"):
            machine.choose_device("cuda", "trainer.device =")


def test_bf16_units_are_those_that_the_kernel_lists() -> None:
    """/proc/cpuinfo is another witness, where there is one."""
    flags = machine.processor_facts().get("flags")
    if flags is None:
        pytest.skip("this machine has no x86 /proc/cpuinfo")
    listed = bool({"avx512_bf16", "amx_bf16"} & set(flags.split()))
    assert listed == (machine.bf16_refusal() is None)
    assert machine.amx() == ("amx_tile" in flags.split())

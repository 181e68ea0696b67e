"""What this machine can do, asked in one place: bf16 units, SIMD lanes (AVX2, AVX-512), AMX, C++ compiler, CUDA device,
cache folder.

    bf16_refusal()                    why bf16 products would be slower than fp32 ones on this CPU, or None
    bf16_is_fast(device)              the same question of any device
    simd(), amx()                     "AVX512", True
    find_compiler()                   path of the C++ compiler, or None
    choose_device("auto")             CUDA where it is; UsageError for a device that is not there
    cache_folder()                    TENFOLD_CACHE, or ~/.cache/tenfold

torch is imported by the functions that ask it: the cache folder is wanted by commands that start without it.
"""

from __future__ import annotations

import os
import platform
import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tenfold.errors import UsageError

if TYPE_CHECKING:
    import torch

COMPILERS = ("c++", "g++", "clang++")
DEVICES = ("auto", "cpu", "cuda")


def cache_folder() -> Path:
    """Where tenfold keeps what it can make or fetch again. An empty TENFOLD_CACHE counts as none."""
    return Path(os.environ.get("TENFOLD_CACHE") or Path.home() / ".cache" / "tenfold")


def find_compiler() -> str | None:
    """The C++ compiler that CXX names, or the first one there is."""
    wanted = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [wanted] if wanted else COMPILERS)), None)


def choose_device(choice: str, name: str = "device", index: int | None = None) -> torch.device:
    """The device that `choice` (auto, cpu, cuda) means here; auto is CUDA where it is. `name` is what the user calls the
    choice, `index` the number of the GPU among several. Raises UsageError."""
    import torch

    if choice not in DEVICES:
        raise UsageError(f"{name} {choice!r}: allowed are {', '.join(DEVICES)}.")
    cuda = choice != "cpu" and torch.cuda.is_available()
    if choice == "cuda" and not cuda:
        raise UsageError(f"{name} 'cuda': this machine has no CUDA. Allowed here: auto, cpu.")
    if not cuda:
        return torch.device("cpu")
    return torch.device("cuda") if index is None else torch.device("cuda", index)


def simd() -> str:
    """The widest vector registers that torch's own kernels use here: AVX512, AVX2, DEFAULT, or another machine's name."""
    import torch

    return torch.backends.cpu.get_cpu_capability()


def amx() -> bool:
    """Whether the CPU has AMX tiles, which multiply bf16 and int8 matrices."""
    import torch

    return torch.cpu._is_amx_tile_supported()


def bf16_refusal() -> str | None:
    """Why bf16 products would be slower than fp32 ones on this CPU, or None where it has units for them."""
    if _has_bf16_units():
        return None
    return f"this CPU ({simd()}) has no bf16 units (AVX512_BF16 or AMX): bf16 weights are widened once and multiplied in fp32"


def bf16_is_fast(device: torch.device) -> bool:
    """Whether matrix products in bf16 are faster than in fp32 on this device."""
    return device.type != "cpu" or bf16_refusal() is None


def _has_bf16_units() -> bool:
    """On x86 oneDNN's own answer is of no use: it says yes to every CPU with AVX-512, where without AVX512_BF16 it emulates
    bf16 more slowly than it multiplies in fp32. On ARM it asks for the BF16 instructions themselves."""
    import torch

    if platform.machine() in ("aarch64", "arm64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.cpu._is_avx512_bf16_supported() or amx()


def processor() -> str:
    """The model name of the CPU."""
    return processor_facts().get("model name") or platform.processor() or platform.machine()


@cache
def processor_facts() -> dict[str, str]:
    """What -march=native depends on: name and instruction sets, from /proc/cpuinfo where there is one."""
    info = Path("/proc/cpuinfo")
    facts = {}
    if info.exists():
        for line in info.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "flags", "Features", "CPU part"):
                facts[name.strip()] = value.strip()
    return facts

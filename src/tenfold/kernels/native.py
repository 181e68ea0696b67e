"""Compiled kernels on the CPU: bag.cpp and decode.cpp, built once with the compiler that is there and kept in the cache.

    native = library()                          bag.cpp's functions, or None where they cannot be had
    backends()                                  every backend of the bag, and why one was refused
    native, reason = build(source, structures)  another source's functions, or why they cannot be had

Nothing needs it: without a compiler the same results come from torch, more slowly. TENFOLD_NATIVE=0 turns it off. The
file in the cache (`TENFOLD_CACHE`, by default ~/.cache/tenfold) is named by the source, the compiler and the processor,
so that none of them can change under it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from tenfold.errors import UsageError
from tenfold.kernels.bag_calls import STRUCTURES
from tenfold.kernels.machine import COMPILERS, cache_folder, find_compiler, processor_facts
from tenfold.kernels.structures import check_sizes

SOURCE = Path(__file__).parent / "csrc" / "bag.cpp"
COUNTS = {  # functions that return a number, by source
    "bag.cpp": ("bag_f32", "bag_bf16", "dots_f32", "dots_bf16", "group_rows"),
    "decode.cpp": ("decode_supported",),
}
_P, _N = ctypes.c_void_p, ctypes.c_int64
ARGUMENTS = {  # of functions that are called with plain numbers, by source
    "bag.cpp": {n: [_P, _N, _N, _P, _N, _P, ctypes.c_int] for n in ("nonzero_bag_f32", "nonzero_bag_bf16")},
}
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-pthread")
# Tried in turn, for compilers that do not know them. With GCC, OpenMP's threads are those of torch, which lies in the same
# process: threads of our own would share the cores with torch's, which spin for a while after every parallel operation.
WISHES = (("-march=native", "-fopenmp"), ("-march=native",), ())
LARGE_PAGE = 2 << 20  # bytes
MADV_HUGEPAGE = 14  # of Linux's mman.h
WAIT = 120  # seconds that a compiler may take


@dataclass(frozen=True)
class Backend:
    """One way to compute something. `refused_because` is empty where it is available."""

    name: str
    available: bool
    refused_because: str = ""


def backends() -> list[Backend]:
    """Of the bag: pure torch, the C++ kernel, the Triton kernel."""
    reason, triton = build(SOURCE, STRUCTURES)[1], triton_refused()
    return [Backend("torch", True), Backend("cpp", not reason, reason), Backend("triton", not triton, triton)]


def library() -> ctypes.CDLL | None:
    """bag.cpp's functions; built at the first call."""
    return build(SOURCE, STRUCTURES)[0]


@cache
def triton_refused() -> str:
    """Why the Triton kernels are not used; empty where they are."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        import triton  # noqa: F401  # pyright: ignore
    except ImportError:
        return "triton is not installed"
    return ""


def fits(*tensors: Tensor) -> bool:
    """Whether plain pointers may be taken: ordinary dense tensors on the CPU, of which no trace is being made."""
    return all(
        type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu" and t.is_contiguous() for t in tensors
    )


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr() if tensor is not None else None)


def large_pages(tensor: Tensor) -> Tensor:
    """Asks the system for large pages under a tensor that has not been written yet, and returns it. Rows at random places
    of a large table then cost no page walk each, and a fresh one is not made 4 KiB at a time. Linux; elsewhere nothing."""
    if sys.platform == "linux" and fits(tensor) and tensor.nbytes >= 4 * LARGE_PAGE:
        first = -(-tensor.data_ptr() // LARGE_PAGE) * LARGE_PAGE
        size = (tensor.data_ptr() + tensor.nbytes - first) // LARGE_PAGE * LARGE_PAGE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), MADV_HUGEPAGE)  # a wish: it may fail
    return tensor


def check(result: int, index: Tensor, rows: int) -> int:
    """Raises IndexError for a kernel's report of an index outside the table."""
    if result < 0:
        raise IndexError(f"index {int(index.flatten()[-result - 1])} is outside a table of {rows} rows.")
    return result


@cache
def build(source: Path, structures: tuple[type[ctypes.Structure], ...] = ()) -> tuple[ctypes.CDLL | None, str]:
    """A source's functions, and an empty text; or None, and why. Built at the first call. `structures` are those that its
    functions take: a library that gives one of them another size is refused."""
    if os.environ.get("TENFOLD_NATIVE") == "0":
        return None, "TENFOLD_NATIVE=0"
    compiler = find_compiler()
    if compiler is None:
        return None, f"no C++ compiler ({os.environ.get('CXX') or ', '.join(COMPILERS)} not found)"
    try:
        loaded = _load(compiler, source)
        check_sizes(loaded, source.name, structures)
        return loaded, ""
    except (OSError, UsageError, subprocess.SubprocessError) as error:
        return None, str(error)


def _load(compiler: str, source: Path) -> ctypes.CDLL:
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=WAIT, check=True).stdout
    root = cache_folder() / "native"
    texts = [source.read_bytes(), *(part.read_bytes() for part in sorted(source.parent.glob("*.h")))]
    mark = hashlib.sha256(b"\0".join([*texts, version, repr((FLAGS, WISHES)).encode(), _processor()]))
    built = root / f"{source.stem}-{mark.hexdigest()[:20]}.so"
    if not built.exists():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as folder:
            made = Path(folder) / "made.so"
            _compile(compiler, source, made)
            ctypes.CDLL(str(made))  # one that does not load is not kept
            made.replace(built)
    loaded = ctypes.CDLL(str(built))
    for name in COUNTS[source.name]:
        getattr(loaded, name).restype = ctypes.c_int64
    for name, kinds in ARGUMENTS.get(source.name, {}).items():
        getattr(loaded, name).argtypes = kinds
    return loaded


def _compile(compiler: str, source: Path, target: Path) -> None:
    """With as many of the wishes as the compiler grants."""
    for wishes in WISHES:
        words = [compiler, *FLAGS, *wishes, str(source), "-o", str(target)]
        result = subprocess.run(words, capture_output=True, text=True, timeout=WAIT, check=False)
        if result.returncode == 0:
            return
    lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
    raise UsageError(f"{compiler} failed: {lines[0]}")


def _processor() -> bytes:
    """What -march=native depends on."""
    return repr((platform.machine(), platform.processor(), sorted(processor_facts().items()))).encode()

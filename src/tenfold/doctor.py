"""`tenfold doctor`: what this machine and this install can do, and what to type for what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

EXTRAS = {
    "vision": ("PIL", "cv2", "pyarrow", "faiss", "tokenizers"),
    "language": ("tokenizers", "gguf", "pyarrow"),
    "cluster": ("ray",),
    "track": ("tensorboard",),
}


@dataclass(frozen=True)
class Finding:
    """One line: `ok` is False when something is missing, and `todo` says what to type."""

    ok: bool
    what: str
    value: str
    todo: str = ""


def examine() -> list[Finding]:
    """Every finding, base install first. Imports torch; nothing is changed."""
    import torch

    findings = [
        Finding(sys.version_info >= (3, 11), "python", platform.python_version(), ""),
        Finding(True, "torch", f"{torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores"),
        Finding(True, "processor", torch.backends.cpu.get_cpu_capability() + (", bf16 units" if _bf16_units() else "")),
        _cuda(),
        _compiler(),
    ]
    for extra, modules in EXTRAS.items():
        absent = [m for m in modules if importlib.util.find_spec(m) is None]
        todo = f'pip install "tenfold[{extra}]"' if absent else ""
        findings.append(
            Finding(not absent, f"extra [{extra}]", f"absent: {', '.join(absent)}" if absent else "installed", todo)
        )
    pip = importlib.util.find_spec("pip") is not None
    findings.append(
        Finding(pip, "pip (for samples)", "present" if pip else "absent", "" if pip else "python -m ensurepip")
    )
    if importlib.util.find_spec("torchvision") is not None:
        findings.append(_torchvision())
    cache = Path(os.environ.get("TENFOLD_CACHE", Path.home() / ".cache" / "tenfold"))
    nearest = next(p for p in [cache, *cache.parents] if p.exists())
    writable = os.access(nearest, os.W_OK)
    findings.append(
        Finding(
            writable,
            "cache",
            f"{cache}, {shutil.disk_usage(nearest).free / 1e9:.0f} GB free",
            "" if writable else "set TENFOLD_CACHE to a folder you can write",
        )
    )
    return findings


def _bf16_units() -> bool:
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _compiler() -> Finding:
    from tenfold.kernels.native import find_compiler

    found = find_compiler()
    value = found or "none: language models decode and memory tables train through torch, 2 to 4 times slower"
    return Finding(found is not None, "C++ compiler", value, "" if found else "apt install g++, or your system's way")


def _cuda() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding(True, "cuda", "none: everything runs on the processor")
    properties = torch.cuda.get_device_properties(0)
    return Finding(True, "cuda", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")


def _torchvision() -> Finding:
    """A torchvision built for another torch fails at import and takes transformers down with it."""
    version = importlib.metadata.version("torchvision")
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        return Finding(False, "torchvision", f"{version} does not import: {error}", "pip uninstall torchvision")
    return Finding(True, "torchvision", f"{version} (not used by tenfold)")

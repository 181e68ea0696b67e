"""`tenfold doctor`: what this CPU, GPU and install can do, what is faster with it, and what to type for what is missing.

Extras and their requirements are read from the package's own metadata; the machine is asked through kernels/machine.py.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tenfold.kernels import machine

PACKAGE = "tenfold"
FOR_CONTRIBUTORS = "dev"  # an extra that a user does not miss


@dataclass(frozen=True)
class Finding:
    """One line: `ok` is False when something is missing, and `todo` says what to type. `faster`: what gets faster with
    it."""

    ok: bool
    what: str
    value: str
    todo: str = ""
    faster: str = ""


def examine() -> list[Finding]:
    """Every finding, base install first. Imports torch; nothing is changed."""
    import torch

    findings = [
        Finding(sys.version_info >= (3, 11), "python", platform.python_version()),
        Finding(True, "torch", f"{torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores"),
        *_processor(),
        _cuda(),
        _compiler(),
        *(_extra(name, requirements) for name, requirements in extras().items()),
        _ray(),
    ]
    pip = importlib.util.find_spec("pip") is not None
    findings.append(
        Finding(pip, "pip (for samples)", "present" if pip else "absent", "" if pip else "python -m ensurepip")
    )
    if importlib.util.find_spec("torchvision") is not None:
        findings.append(_torchvision())
    return [*findings, _cache(machine.cache_folder())]


def _processor() -> list[Finding]:
    lanes, refusal = machine.simd(), machine.bf16_refusal()
    compiled = {"AVX512": "AVX512, 512 bits", "AVX2": "AVX2, 256 bits"}
    return [
        Finding(True, "processor", machine.processor()),
        Finding(
            True,
            "vector lanes",
            compiled.get(lanes, f"{lanes}: neither AVX2 nor AVX512"),
            faster="decoding of language models: a step is one compiled call (512 bits at a time with bf16 units)",
        ),
        Finding(
            True,
            "bf16 units",
            "present" if refusal is None else "none: products stay in fp32",
            faster="training (--trainer.precision auto), prepared image models and decoding in bf16",
        ),
        Finding(
            True,
            "AMX tiles",
            "present" if machine.amx() else "none",
            faster="bf16 products of many rows: training, images in batches, long prompts",
        ),
    ]


def _compiler() -> Finding:
    found = machine.find_compiler()
    return Finding(
        found is not None,
        "C++ compiler",
        found or "none: the same results come from torch",
        "" if found else "apt install g++, or your system's way",
        faster="decoding of language models and training of memory tables, 2 to 4 times",
    )


def _cuda() -> Finding:
    import torch

    faster = "training, drafting for many requests at once, 2:4 sparse products"
    if not torch.cuda.is_available():
        return Finding(True, "CUDA", "none: everything runs on the CPU", faster=faster)
    properties = torch.cuda.get_device_properties(0)
    return Finding(True, "CUDA", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB", faster=faster)


def _ray() -> Finding:
    version = _installed("ray")
    return Finding(
        True,
        "Ray",
        version or "absent: one machine",
        faster="curation and rollouts over several machines, replicas of a server",
    )


def extras() -> dict[str, tuple[str, ...]]:
    """Each extra of the package with what it alone requires. Extras that only join others are left out, and so is the one
    for contributors."""
    metadata = importlib.metadata.metadata(PACKAGE)
    required = importlib.metadata.requires(PACKAGE) or []
    names = [name for name in metadata.get_all("Provides-Extra") or [] if name != FOR_CONTRIBUTORS]
    return own_requirements({name: _requirements(required, name) for name in sorted(names)})


def _requirements(required: Sequence[str], extra: str) -> tuple[str, ...]:
    """`pillow>=10.3; extra == 'vision'` is pillow>=10.3 of vision; what the package asks of itself is not counted."""
    found = []
    for line in required:
        requirement, _, marker = line.partition(";")
        if re.search(rf"""extra\s*==\s*['"]{re.escape(extra)}['"]""", marker) and _name(requirement) != PACKAGE:
            found.append(requirement.strip())
    return tuple(found)


def own_requirements(found: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Extras without what they take over whole from others: `all` has nothing of its own then, and is left out."""
    own = {}
    for name, requirements in found.items():
        others = [set(other) for key, other in found.items() if key != name and set(other) < set(requirements)]
        left = tuple(r for r in requirements if not any(r in other for other in others))
        if left:
            own[name] = left
    return own


def _extra(name: str, requirements: Sequence[str]) -> Finding:
    missing = [text for text in map(lacking, requirements) if text]
    value = ", ".join(missing) if missing else "installed"
    return Finding(not missing, f"extra [{name}]", value, f'pip install "{PACKAGE}[{name}]"' if missing else "")


def lacking(requirement: str) -> str:
    """What is wrong with a requirement of the kind `name[extras]>=1.2`: absent or too old; empty when it is met."""
    name = _name(requirement)
    version = _installed(name)
    if version is None:
        return f"{name} is absent"
    least = re.search(r">=\s*([\d.]+)", requirement)
    if least and _numbers(version) < _numbers(least[1]):
        return f"{name} {version} is older than {least[1]}"
    return ""


def _name(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;(]", requirement.strip(), maxsplit=1)[0]


def _numbers(version: str) -> tuple[int, ...]:
    """The release of a version: (1, 2) of 1.2.0 and of 1.2rc1."""
    release = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in release[0].split(".")] if release else [0]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cache(folder: Path) -> Finding:
    nearest = next(p for p in [folder, *folder.parents] if p.exists())
    writable = nearest.is_dir() and os.access(nearest, os.W_OK)
    free = f"{shutil.disk_usage(nearest).free / 1e9:.0f} GB free"
    todo = "" if writable else "set TENFOLD_CACHE to a folder you can write"
    return Finding(writable, "cache", f"{folder}, {free}", todo)


def _torchvision() -> Finding:
    """A torchvision built for another torch fails at import and takes transformers down with it."""
    version = importlib.metadata.version("torchvision")
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        return Finding(False, "torchvision", f"{version} does not import: {error}", "pip uninstall torchvision")
    return Finding(True, "torchvision", f"{version} (not used by tenfold)")

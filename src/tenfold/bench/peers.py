"""Peers of the benchmarks and oracles of the tests: environments of their own beside `.venv`, never the product's.

    make oracles      .oracles: timm, torchvision, ... for the tests marked `oracle` and for `tenfold bench augment`
    make peers        .peers: OpenVINO GenAI for `tenfold bench speculative`

.oracles is filled with `pip install --no-deps --target`, because several of these packages would replace torch, and is put
on the path by `PYTHONPATH`. .peers is an environment with a Python of its own, which a benchmark starts as another process
and talks to over pipes; TENFOLD_PEERS names another place for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tenfold.errors import DataError

# What torchvision's Python half declares shapes for at import. Its compiled half is built for another torch.
_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[Any] = []  # an operator lives as long as its library object


def torchvision(module: str = "torchvision") -> Any | None:
    """The named module of torchvision, or None when it is not installed. Its transforms are Python over torch and Pillow
    and run with any torch; its compiled operators (boxes, regions) do not, and are declared empty."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    import torch

    if not _declared and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _OPERATORS:
            library.define(schema)
        _declared.append(library)
    return importlib.import_module(module)


def peers_python() -> Path:
    """The Python of the peers' environment, whether it is there or not."""
    folder = Path(os.environ.get("TENFOLD_PEERS") or Path(__file__).parents[3] / ".peers")
    return folder / "bin" / "python"


def openvino_missing() -> str | None:
    """Why OpenVINO GenAI cannot be run, or None."""
    python = peers_python()
    if not python.exists():
        return f"{python} is not there (type: make peers)"
    found = subprocess.run([python, "-c", "import openvino_genai"], capture_output=True, check=False)
    return None if found.returncode == 0 else f"{python} has no openvino-genai (type: make peers)"


class OpenVINO:
    """OpenVINO GenAI on a GGUF file, in a process of its own (openvino_peer.py)."""

    def __init__(self, model: Path, threads: int) -> None:
        script = Path(__file__).with_name("openvino_peer.py")
        self._process = subprocess.Popen(
            [peers_python(), script, model, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.version = str(self._read()["version"])

    def answer(self, prompt: Sequence[int], tokens: int, stops: Sequence[int]) -> tuple[list[int], float, float]:
        """(ids, seconds of its processor, seconds of the wall) of a greedy answer; a stop token that ends it is counted."""
        assert self._process.stdin is not None
        print(
            json.dumps({"ids": list(prompt), "tokens": tokens, "stops": list(stops)}),
            file=self._process.stdin,
            flush=True,
        )
        found = self._read()
        return found["ids"], found["cpu"], found["wall"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise DataError(f"OpenVINO GenAI ended with exit code {self._process.wait()} before it answered.")
        return json.loads(line)

    def __del__(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()

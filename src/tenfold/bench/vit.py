"""`tenfold bench vit`: ViT-S/16 of DINOv3 at 224 pixels on one thread, beside transformers, in fp32 and bf16.

All sides run in turns in one process, on the same weights and images. The bound is the time of the forward pass's matrix
products alone (4.70 billion multiply-adds an image, attention among them) in the same run: no program that multiplies
through the same library can be faster.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from tenfold.bench.table import interleave, on_threads, ratio
from tenfold.data.tensors import save_own
from tenfold.errors import MissingExtra
from tenfold.export.weights import convert
from tenfold.kernels.machine import bf16_refusal
from tenfold.vision.backbones.vit import VIT_CONFIGS, VisionTransformer

NAME, SIDE = "dinov3-s", 224
BATCHES = (1, 8)
BOUND = "matrix products alone"


def run(rounds: int = 9) -> dict[str, Any]:
    """Milliseconds an image, and how much faster than transformers in the same number format."""
    with on_threads(1), torch.inference_mode():
        rows = [row for batch in BATCHES for row in _measure(batch, rounds)]
    refusal = bf16_refusal()
    notes = [
        "One thread. ms an image, median of the rounds, all sides in turns; ratio = peer / ours in the same format, "
        "median (smallest to largest) of the rounds; bound = time of the matrix products in that format / time of the side.",
        "`prepared` is `model.for_inference(dtype)`; features equal the plain model's within 1e-5 in fp32.",
    ]
    return {
        "title": f"ViT-S/16 forward at {SIDE}",
        "rows": rows,
        "notes": notes + ([f"bf16: {refusal}."] if refusal else []),
    }


def _measure(batch: int, rounds: int) -> list[dict[str, Any]]:
    ours = VisionTransformer(VIT_CONFIGS[NAME]).eval()
    peer = transformers_model(ours)
    half = transformers_model(ours).bfloat16()
    images = torch.randn(batch, 3, SIDE, SIDE)
    narrow = images.bfloat16()
    fast, fast_half = ours.for_inference(), ours.for_inference(torch.bfloat16)
    sides: dict[str, Callable[[], object]] = {
        "prepared fp32": lambda: fast(images),
        "plain fp32": lambda: ours(images),
        "transformers fp32": lambda: peer(images),
        BOUND: _products(batch, torch.float32),
        f"{BOUND}, bf16": _products(batch, torch.bfloat16),
        "prepared bf16": lambda: fast_half(narrow),
        "transformers bf16": lambda: half(narrow),
    }
    seconds = interleave(sides, rounds)
    bounds = {"fp32": median(seconds[BOUND]), "bf16": min(median(seconds[BOUND]), median(seconds[f"{BOUND}, bf16"]))}
    rows = []
    for name, times in seconds.items():
        against = f"transformers {name.rpartition(' ')[2]}"
        row: dict[str, Any] = {"batch": batch, "side": name, "ms/image": round(median(times) / batch * 1e3, 2)}
        row["min to max"] = f"{min(times) / batch * 1e3:.1f} to {max(times) / batch * 1e3:.1f}"
        row["ratio"] = ""
        if against in seconds and against != name:
            middle, low, high = ratio(times, seconds[against])
            row["ratio"] = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        row["bound"] = f"{bounds['bf16' if name.endswith('bf16') else 'fp32'] / median(times):.0%}"
        rows.append(row)
    return rows


def transformers_model(model: VisionTransformer) -> torch.nn.Module:
    """transformers' class on the same weights."""
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise MissingExtra("transformers", "dev", "it is the peer of this benchmark") from error
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_own(folder / "own.safetensors", model.state_dict(), "vit", model.config)
        return AutoModel.from_pretrained(convert(folder / "own.safetensors", folder / "hf", to="hf")).eval()


def _products(batch: int, dtype: torch.dtype) -> Callable[[], None]:
    """Every matrix product of the forward pass, into memory that stands ready."""
    c = VIT_CONFIGS[NAME]
    patches = (SIDE // c.patch_size) ** 2
    n, d, width = 1 + c.registers + patches, c.dim, c.dim // c.heads
    linear = [(n, d, 3 * d), (n, d, d), (n, d, 4 * d), (n, 4 * d, d)]
    shapes = [(patches, c.channels * c.patch_size**2, d), *linear * c.depth]
    ready: dict[tuple[int, int, int], tuple[Tensor, Tensor, Tensor]] = {
        (m, i, o): (
            torch.randn(batch * m, i).to(dtype),
            torch.randn(i, o).to(dtype),
            torch.empty(batch * m, o, dtype=dtype),
        )
        for m, i, o in set(shapes)
    }
    heads = batch * c.heads
    q, k, v = (torch.randn(heads, *shape).to(dtype) for shape in ((n, width), (width, n), (n, width)))
    scores, out = torch.empty(heads, n, n, dtype=dtype), torch.empty(heads, n, width, dtype=dtype)

    def products() -> None:
        for shape in shapes:
            x, w, y = ready[shape]
            torch.mm(x, w, out=y)
        for _ in range(c.depth):
            torch.bmm(q, k, out=scores)
            torch.bmm(scores, v, out=out)

    return products

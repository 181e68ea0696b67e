"""Inputs of the dense tests: small cuts of CamVid, weights of a random mini network, parquet files written anew."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from tenfold.data.tensors import save_own
from tenfold.vision.backbones.vit import VIT_CONFIGS, VisionTransformer


def mini() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(VIT_CONFIGS["mini"]).eval()


def mini_weights(folder: Path) -> Path:
    model = mini()
    return save_own(folder / "mini.safetensors", model.state_dict(), "vit", model.config)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def cut(source: Path, out: Path, rows: slice, width: int, height: int) -> Path:
    """Some rows of a CamVid file at a smaller size, masks by nearest neighbour."""
    table = pq.read_table(source).slice(rows.start or 0, (rows.stop or 0) - (rows.start or 0))
    size = (width, height)
    images = [Image.open(io.BytesIO(b.as_py())).convert("RGB").resize(size) for b in table["image"]]
    masks = [Image.open(io.BytesIO(b.as_py())).resize(size, Image.Resampling.NEAREST) for b in table["mask"]]
    return write(
        out,
        [png(np.array(image)) for image in images],
        mask=[png(np.array(mask)) for mask in masks],
        names=table["name"].to_pylist(),
        classes=table.schema.metadata[b"classes"].decode(),
    )


def write(
    out: Path,
    images: Sequence[bytes | None],
    names: Sequence[str] | None = None,
    classes: str | None = None,
    **columns: Sequence[bytes | None],
) -> Path:
    named = {"name": pa.array(names)} if names else {}
    fields = {name: pa.array(values, pa.binary()) for name, values in {"image": images, **columns}.items()}
    table = pa.table({**named, **fields})
    pq.write_table(table.replace_schema_metadata({"classes": classes} if classes else {}), out)
    return out

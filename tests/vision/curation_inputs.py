"""Inputs of the curation tests: pools of encoded images, shards of vectors as the embed stage writes them, weights."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tenfold.data.tensors import save_own
from tenfold.vision.backbones.vit import VisionTransformer


def encoded(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_pool(path: Path, images: list[bytes]) -> Path:
    pq.write_table(pa.table({"image": pa.array(images, pa.binary())}), path)
    return path


def shard_of(path: Path, vectors: np.ndarray, first: int = 0) -> Path:
    """A shard as the embed stage writes it."""
    rows = len(vectors)
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).ravel()), vectors.shape[1])
    digests = [f"{first + row:064x}"[::-1] for row in range(rows)]
    ids, pixels = np.arange(first, first + rows), np.ones(rows, np.int64)
    columns = {"id": ids, "name": digests, "sha256": digests, "pixels": pixels, "vector": values}
    pq.write_table(pa.table(columns), path)
    return path


def angles(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def save_vit(path: Path, model: VisionTransformer) -> Path:
    return save_own(path, model.state_dict(), "vit", model.config)

"""Embeddings of many images, in shards on disk: the encoder, how a shard looks, and reading one that may be damaged.

    embed_rows(Encoder("pixels"), Rows(pool, 0, 4096), target)           the map function: one parquet shard
    vectors = Vectors(paths, width=168); vectors[0]                      (M, D) float32, unit length, read when asked for

A shard has a row per image that could be read: `id` (its number in the source), `name`, `sha256` (of the pixels), `pixels`
(how many), `vector` (fp16, fixed width). Unreadable images stand in the schema's metadata, with the reason.

`pixels` is an embedding for finding copies that needs no weights: the 54 lowest cosines of three opponent colours, weighed by
frequency (photographs fall off as 1/f, so this whitens them), square-rooted. SSCD (arXiv 2202.10261), which the papers
use, is stronger; like any other network it comes in as weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from tenfold.data.file_names import readable_name
from tenfold.data.sample import Sample
from tenfold.errors import DataError, MissingExtra
from tenfold.shards.executor import map_function

PIXELS = "pixels"
SIDE, COSINES = 32, 8  # the image is squashed to SIDE x SIDE, and frequencies below COSINES are kept
BATCH = 32  # images that go through a network together
COLUMNS = ("id", "name", "sha256", "pixels", "vector")


@dataclass(frozen=True)
class Encoder:
    """What computes embeddings: `pixels`, or the weights of a backbone ([CLS ; mean patch] at `size` pixels).

    `sha256` is that of the weights file: shards of other weights are refused, whatever their path is. Journals hold these
    fields.
    """

    by: str = PIXELS
    size: int = 224
    sha256: str = ""

    @classmethod
    def of(cls, by: str, size: int) -> Encoder:
        """`pixels`, or weights with the digest of their files; weights that cannot be used are refused here, before any
        work."""
        from tenfold.export.reading import weights_path
        from tenfold.shards.journal import digest
        from tenfold.vision.backbones.backbone import model_of

        if by == PIXELS:
            return cls()
        model_of(Path(by))
        path = weights_path(by).absolute()
        if path.is_dir() and (path / "final.safetensors").exists():
            path = path / "final.safetensors"  # the rest of a run folder keeps changing
        return cls(str(path), size, digest(path))

    def __call__(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float32[np.ndarray, "n d"]:
        """Unit vectors of the images. Raises DataError when the network's output is not finite."""
        rows = np.stack([cosines(i) for i in images]) if self.by == PIXELS else _through(self.by, self.size, images)
        if not np.isfinite(rows).all():
            raise DataError(f"{self.by}: field vector is not finite for {(~np.isfinite(rows).all(1)).sum()} images.")
        return unit(rows)


@dataclass(frozen=True)
class Rows:
    """Images `start` to `stop` of a source (see tenfold.data.sources.open_source), and which files they are (`content_id`):
    other files under the same numbers make another item, which is done again."""

    source: Path
    start: int
    stop: int
    files: str = ""

    @property
    def name(self) -> str:
        return f"rows-{self.start:010}.parquet"


@map_function("vision.embed_rows", formerly=("tenfold.vision.embeddings:embed_rows",))
def embed_rows(encoder: Encoder, rows: Rows, target: Path) -> None:
    """Writes the shard of some rows of a source."""
    from tenfold.data.sources import content_id

    source = opened(rows.source)
    write_shard(target, encoder, ((i, *read_sample(source, i)) for i in range(rows.start, rows.stop)))
    if rows.files and content_id(source, rows.start, rows.stop) != rows.files:
        opened.cache_clear()  # the next attempt looks again
        raise DataError(f"{rows.source} changed while it was read: files came, went or were written to.")


def former_rows(source: Any, rows: Rows, shard: Path) -> tuple[dict[str, Any], Callable[[], bool]]:
    """The item by which version 0.1 knew a shard, which had no files in it; and what says whether the shard is still of these
    files: its images are decoded once more, and compared with its names and the SHA-256 of its pixels."""

    def still() -> bool:
        names, digests = read_column(shard, "name"), read_column(shard, "sha256")
        known = dict(zip(read_column(shard, "id").tolist(), zip(names, digests)))
        for number in range(rows.start, rows.stop):
            sample, _ = read_sample(source, number)
            now = None if sample is None else (readable_name(sample.name), _pixels_digest(sample.image))
            if now != known.get(number):
                return False
        return True

    return {"source": str(rows.source), "start": rows.start, "stop": rows.stop}, still


def read_sample(source: Any, index: int) -> tuple[Sample | None, str]:
    """The image, or None and why it cannot be read."""
    try:
        return source[index], ""
    except DataError as error:
        return None, str(error)


def write_shard(target: Path, encoder: Encoder, samples: Any) -> None:
    """Embeds (id, Sample or None, reason) and writes them; memory holds a batch of images at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    unreadable: dict[str, str] = {}
    waiting: list[np.ndarray] = []

    def flush() -> None:
        if waiting:
            columns["vector"].extend(encoder(waiting).astype(np.float16))
            waiting.clear()

    for number, sample, reason in samples:
        if sample is None:
            unreadable[str(number)] = reason
            continue
        image = sample.image
        columns["id"].append(number)
        columns["name"].append(readable_name(sample.name))
        columns["sha256"].append(_pixels_digest(image))
        columns["pixels"].append(image.shape[0] * image.shape[1])
        waiting.append(image)
        if len(waiting) == BATCH:
            flush()
    flush()
    vectors = np.stack(columns.pop("vector")) if columns["id"] else np.empty((0, 1), np.float16)
    fields: dict[str, Any] = {
        "id": pa.array(columns["id"], pa.int64()),
        "name": pa.array(columns["name"], pa.string()),
        "sha256": pa.array(columns["sha256"], pa.string()),
        "pixels": pa.array(columns["pixels"], pa.int64()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
    }
    pq.write_table(pa.table(fields).replace_schema_metadata({"unreadable": json.dumps(unreadable)}), target)


def _pixels_digest(image: np.ndarray) -> str:
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def read_column(path: Path, name: str) -> Any:
    """One column of a shard (numpy; strings as a list). Raises DataError naming file and field."""
    pq = parquet()
    import pyarrow as pa

    try:
        table = pq.read_table(path, columns=[name])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: field {name} cannot be read: {error}.") from error
    if name not in table.column_names:
        raise DataError(f"{path} has no field {name}.")
    column = table.column(name)
    return column.to_pylist() if pa.types.is_string(column.type) else column.to_numpy()


def unreadable_of(path: Path) -> dict[int, str]:
    """Ids of a shard's images that could not be read, with the reasons."""
    metadata = parquet().read_schema(path).metadata or {}
    return {int(number): reason for number, reason in json.loads(metadata.get(b"unreadable", b"{}")).items()}


def read_vectors(path: Path, width: int | None = None) -> Float32[np.ndarray, "m d"]:
    """A shard's vectors, scaled to unit length again. Raises DataError naming file and field: another width, not finite."""
    pq = parquet()
    import pyarrow as pa

    try:
        column = pq.read_table(path, columns=["vector"]).column("vector").combine_chunks()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{path}: field vector cannot be read: {error}.") from error
    if not pa.types.is_fixed_size_list(column.type) or not pa.types.is_floating(column.type.value_type):
        raise DataError(f"{path}: field vector is {column.type}; a list of numbers of fixed size is read.")
    if column.null_count:
        raise DataError(f"{path}: field vector is absent in {column.null_count} rows.")
    found = column.type.list_size
    if width is not None and found != width and len(column):
        raise DataError(f"{path}: field vector has width {found}; the other shards have {width}.")
    rows = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(column), found)
    bad = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(bad):
        raise DataError(f"{path}: field vector is not finite in {len(bad)} rows, first row {bad[0]}.")
    return unit(rows) if len(rows) else np.empty((0, width or found), np.float32)


class Vectors(Sequence[np.ndarray]):
    """Shards as a sequence of matrices that are read when asked for, one of them kept."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.lengths = [parquet().read_metadata(path).num_rows for path in self.paths]
        self.starts = np.cumsum([0, *self.lengths])
        self.width = next((read_vectors(p).shape[1] for p, n in zip(self.paths, self.lengths) if n), 1)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return _held(self.paths[index], self.width)

    @property
    def rows(self) -> int:
        return int(self.starts[-1])


def unit(rows: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Rows of length 1; a row of zeros stays one."""
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def cosines(image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, " d"]:
    """The `pixels` embedding of one image, 3 x 54 numbers of unit length."""
    cv2 = opencv()
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    red, green, blue = small[..., 0], small[..., 1], small[..., 2]
    planes = (small.mean(-1), red - blue, 0.7 * (2 * green - red - blue))
    weight, kept = _frequencies()
    values = np.concatenate([(cv2.dct(np.ascontiguousarray(p))[:COSINES, :COSINES] * weight)[kept] for p in planes])
    return unit((np.sign(values) * np.sqrt(np.abs(values)))[None])[0]


@cache
def _frequencies() -> tuple[np.ndarray, np.ndarray]:
    """Weight of each cosine, and which are kept: all below COSINES but the mean, which is the exposure."""
    axis = np.arange(COSINES, dtype=np.float32)
    radius = np.sqrt(axis[:, None] ** 2 + axis[None] ** 2)
    return radius, (radius < COSINES) & (radius > 0)


def _through(weights: str, size: int, images: Sequence[np.ndarray]) -> np.ndarray:
    """[CLS ; mean patch] of a network, each image squashed to a square of its own training's kind."""
    import torch

    from tenfold.data.sources import resized
    from tenfold.vision.backbones.images import normalize

    model = _model(weights)
    side = max(1, size // model.config.patch_size) * model.config.patch_size
    batch = torch.stack([resized(torch.from_numpy(image), side) for image in images])
    with torch.inference_mode():
        output = model(normalize(batch, model.config))
    return torch.cat([output.cls_token, output.patch_tokens.flatten(1, 2).mean(1)], dim=1).float().numpy()


@lru_cache(maxsize=1)
def _model(weights: str) -> Any:
    from tenfold.vision.backbones.backbone import model_of

    return model_of(Path(weights)).float()


@lru_cache(maxsize=2)
def opened(path: Path) -> Any:
    """A source, opened once per process."""
    from tenfold.data.sources import open_source

    return open_source(path)


@lru_cache(maxsize=2)
def _held(path: Path, width: int) -> np.ndarray:
    return read_vectors(path, width)


def parquet() -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("pyarrow", "vision", "it holds the shards of vectors") from error
    return pq


def opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MissingExtra(
            "opencv-python-headless", "vision", "the encoder `pixels` reads frequencies with it"
        ) from error
    return cv2

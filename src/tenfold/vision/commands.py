"""`tenfold vision embed`: features of your photographs, and a picture of what the network sees in each."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from tenfold.errors import DataError, MissingExtra, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from tenfold.vision.vit import VisionTransformer


@dataclass(frozen=True)
class Embed:
    """Features of photographs, from any DINOv2 or DINOv3 weights or a run of your own.

    $ tenfold vision embed runs/dinov3-mini photos/ --out features.parquet --pictures maps/

    The output has one row per image: its path and the feature vector. An image that cannot be read is named on standard
    error and left out; the others are written all the same, and the exit code is 3.
    """

    weights: tyro.conf.Positional[Path]  # weights file, Hugging Face folder, or run folder
    images: tyro.conf.Positional[tuple[Path, ...]]  # image files, or folders of them
    out: Path  # features.parquet or features.safetensors, by its ending
    features: Literal["cls", "patch-mean", "both", "map"] = "both"  # both = [CLS ; mean patch]; map = every patch
    size: int | None = None  # shorter side in pixels (default: as it is, at most 512)
    pictures: Path | None = None  # folder for PCA pictures, one PNG beside each image
    json: bool = False  # print the summary as JSON


def embed(options: Embed) -> int:
    try:
        import PIL.Image
    except ImportError as error:
        raise MissingExtra("pillow", "vision", "it reads images") from error
    import torch

    from tenfold.data.atomic import write_atomic
    from tenfold.data.progress import track
    from tenfold.vision.correspond import beside, pca_map
    from tenfold.vision.images import find_images, normalize, open_image

    if options.out.suffix not in (".parquet", ".safetensors"):
        raise UsageError(f"--out {options.out}: the ending says the format; allowed are .parquet and .safetensors.")
    if options.features == "map" and options.out.suffix == ".parquet":
        raise UsageError("--features map has a grid per image: write it to a .safetensors file.")
    files = find_images(options.images)
    if not files:
        raise DataError(f"no images in {', '.join(map(str, options.images))}.")
    model = model_of(options.weights).for_inference()

    kept: list[Path] = []
    rows: list[Tensor] = []
    grids: list[Tensor] = []
    failures: list[str] = []
    for file in track(files, "embedding", len(files)):
        try:
            image = open_image(file, options.size, model.config.patch_size)
        except DataError as error:
            failures.append(str(error))
            continue
        with torch.inference_mode():
            output = model(normalize(image, model.config)[None])
        kept.append(file)
        rows.append(_feature(options.features, output.cls_token[0], output.patch_tokens[0]))
        if options.pictures:
            grids.append(output.patch_tokens[0].clone())
    if rows:
        _write(options.out, kept, rows)
    if options.pictures and grids:
        for number, (file, picture) in enumerate(zip(kept, pca_map(grids))):
            image = open_image(file, options.size, model.config.patch_size)
            buffer = io.BytesIO()
            PIL.Image.fromarray(beside(image, picture).numpy()).save(buffer, "PNG")
            write_atomic(options.pictures / f"{number:04d}-{file.stem}.png", buffer.getvalue())
    for failure in failures:
        print(f"tenfold: left out: {failure}", file=sys.stderr)
    summary = {
        "out": str(options.out) if rows else None,
        "images": len(rows),
        "left_out": len(failures),
        "width": rows[0].shape[-1] if rows else 0,
        "pictures": str(options.pictures) if options.pictures and grids else None,
    }
    print(json.dumps(summary) if options.json else "\n".join(f"{k:<10}{v}" for k, v in summary.items()))
    return DataError.exit_code if failures else 0


def _feature(kind: str, cls_token: Tensor, patch_tokens: Tensor) -> Tensor:
    import torch

    mean = patch_tokens.flatten(0, 1).mean(0)
    if kind == "cls":
        return cls_token
    if kind == "patch-mean":
        return mean
    return torch.cat([cls_token, mean]) if kind == "both" else patch_tokens


def _write(out: Path, files: list[Path], rows: list[Tensor]) -> None:
    from tenfold.data.atomic import aside

    if out.suffix == ".safetensors":
        from safetensors.torch import save_file

        with aside(out) as temporary:
            save_file({str(f): r.contiguous() for f, r in zip(files, rows)}, temporary)
        return
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("pyarrow", "vision", "it writes parquet") from error
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array([v for row in rows for v in row.tolist()], pa.float32()), rows[0].shape[-1]
    )
    with aside(out) as temporary:
        pq.write_table(pa.table({"path": [str(f) for f in files], "feature": vectors}), temporary)


def model_of(weights: Path) -> VisionTransformer:
    """The vision transformer in `weights`; a UsageError when it holds something else."""
    from tenfold.export.weights import load
    from tenfold.vision.vit import VisionTransformer

    model = load(weights)
    if not isinstance(model, VisionTransformer):
        raise UsageError(f"{weights} holds a {type(model).__name__}, not a vision transformer.")
    return model

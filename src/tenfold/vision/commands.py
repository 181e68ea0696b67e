"""`tenfold vision embed`: features of your photographs, and a picture of what the network sees in each.
`tenfold vision curate`: a training set out of a pool, without copies and leaks, and in balance."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from tenfold.errors import DataError, MissingExtra, UsageError
from tenfold.vision.curation.config import CurateConfig

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Embed:
    """Features of photographs, from any DINOv2 or DINOv3 weights or a run of your own.

    $ tenfold vision embed dinov3-mini photos/ --out features.parquet --pictures maps/

    The output has one row per image: its path and the feature vector. An image that cannot be read is named on standard
    error and left out; the others are written all the same, and the exit code is 3.
    """

    weights: tyro.conf.Positional[Path]  # a weights file, Hugging Face folder, run folder, or dinov3-mini, which ships
    images: tyro.conf.Positional[tuple[Path, ...]]  # image files, or folders of them
    out: Path  # features.parquet or features.safetensors, by its ending
    features: Literal["cls", "patch-mean", "both", "map"] = "both"  # both = [CLS ; mean patch]; map = every patch
    size: int | None = None  # shorter side in pixels (default: as it is, at most 512 on the longer side)
    pictures: Path | None = None  # folder for PCA pictures, one PNG beside each image
    json: bool = False  # print the summary as JSON


def embed(options: Embed) -> int:
    try:
        import PIL.Image
    except ImportError as error:
        raise MissingExtra("pillow", "vision", "it reads images") from error
    import torch

    from tenfold.data.atomic import write_atomic
    from tenfold.data.file_names import output_name
    from tenfold.data.progress import track
    from tenfold.vision.backbones.backbone import model_of
    from tenfold.vision.backbones.images import find_images, normalize, open_image, open_readable
    from tenfold.vision.probes.correspond import beside, pca_map

    if options.out.suffix not in (".parquet", ".safetensors"):
        raise UsageError(f"--out {options.out}: the ending says the format; allowed are .parquet and .safetensors.")
    if options.features == "map" and options.out.suffix == ".parquet":
        raise UsageError("--features map has a grid per image: write it to a .safetensors file.")
    notes: list[str] = []
    files = find_images(options.images, notes)
    model = model_of(options.weights).for_inference()

    kept: list[Path] = []
    rows: list[Tensor] = []
    grids: list[Tensor] = []
    failures: list[str] = []
    readable = open_readable(files, options.size, model.config.patch_size, failures)
    for file, image in track(readable, "embedding", len(files)):
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
            write_atomic(options.pictures / output_name(number, file.stem, ".png"), buffer.getvalue())
    for line in [f"left out: {failure}" for failure in failures] + notes:
        print(f"tenfold: {line}", file=sys.stderr)
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
    import torch

    from tenfold.data.atomic import aside
    from tenfold.data.file_names import readable_name

    names = [readable_name(file) for file in files]
    if out.suffix == ".safetensors":
        from safetensors.torch import save_file

        with aside(out) as temporary:
            save_file({name: row.contiguous() for name, row in zip(names, rows)}, temporary)
        return
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("pyarrow", "vision", "it writes parquet") from error
    values = torch.stack(rows).float().numpy().ravel()
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float32()), rows[0].shape[-1])
    with aside(out) as temporary:
        pq.write_table(pa.table({"path": names, "feature": vectors}), temporary)


@dataclass(frozen=True)
class Curate(CurateConfig):
    """Chooses a training set from a pool: no duplicates, no images of your test sets, rare things beside common ones.

    $ tenfold vision curate pixels --pool photos/ --target 10000 --out curated --calibrate
    $ tenfold vision curate WEIGHTS --pool pool.parquet --reference test.parquet --target 50000 --out curated --threshold 0.8
    $ tenfold vision curate WEIGHTS --pool DIR --reference A.tar B/ --target 1000000 --out DIR --calibrate --executor ray

    A pool, reference or query set is a folder of images, a parquet file (or a folder of them), or a tar. What happens, each
    step in a folder of its own below --out, so that the same command continues after any stop:

      embed            every image becomes a vector, for finding copies (--copies) and for meaning (WEIGHTS)
      dedup            images more alike than a threshold form groups, and the largest image of each group stays
      relative-dedup   a group that touches a --reference image goes whole: it would leak a test set into training
      cluster          what is left, in levels of k-means
      retrieve         the images nearest to the queries (--query, or else the references)
      sample           the rest of --target, evenly over the clusters

    The threshold depends on the encoder. --calibrate plants copies of your own images, prints how many each threshold
    finds and what else it joins, and keeps its choice in OUT/calibration.json; --threshold sets it by hand. Without either
    the command stops (exit code 2).

    Results: OUT/manifest.parquet (id, name, sha256, clusters, why, times), OUT/report.json, OUT/contact.png.
    """

    json: bool = False  # print the report as JSON


def curate(options: Curate) -> None:
    from tenfold.vision.curation.contact_sheet import write_sheet
    from tenfold.vision.curation.curate import curate as run_curation

    report = run_curation(options, say=lambda line: print(line, file=sys.stderr))
    write_sheet(options.pool, options.out, options.out / "contact.png")
    if options.json:
        print(json.dumps({"out": str(options.out), **report}))
        return
    for stage, values in report.items():
        print(f"{stage:<16}" + ", ".join(f"{name} {value}" for name, value in values.items()))
    print(f"{'written':<16}{options.out / 'manifest.parquet'}, report.json, contact.png")

"""Contact sheet, a picture of what curation did: some groups of duplicates with the image that was kept, and some clusters.

    write_sheet(config, Path("contact.png"))          after curate(config)

A row of the picture is a group or a cluster. In a group the image that stays has a green frame; where a reference image
took the whole group away, all frames are red.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tenfold.data.atomic import write_atomic
from tenfold.data.sources import Source, open_source, resized
from tenfold.errors import DataError, MissingExtra
from tenfold.vision.curation.embeddings import read_column

SIDE, MARGIN, CAPTION = 96, 4, 16  # pixels
GROUPS, CLUSTERS, ACROSS = 5, 5, 8  # rows of each kind, images of a row
GREEN, RED, WHITE = (40, 160, 60), (200, 50, 40), (255, 255, 255)


def write_sheet(pool: Path, out: Path, path: Path) -> None:
    """Draws from the files below `out` that curate() wrote."""
    source = open_source(pool)
    ids = _ids(out)
    rows = [*_groups(out, ids), *_clusters(out)]
    image = _image()
    width = ACROSS * (SIDE + MARGIN) + MARGIN
    height = max(1, len(rows)) * (SIDE + CAPTION + MARGIN) + MARGIN
    sheet = image.Image.new("RGB", (width, height), WHITE)
    draw = image.ImageDraw.Draw(sheet)
    for number, (caption, members) in enumerate(rows):
        top = MARGIN + number * (SIDE + CAPTION + MARGIN)
        draw.text((MARGIN, top), caption, fill=(0, 0, 0))
        for place, (row, colour) in enumerate(members[:ACROSS]):
            left = MARGIN + place * (SIDE + MARGIN)
            draw.rectangle((left - 2, top + CAPTION - 2, left + SIDE + 1, top + CAPTION + SIDE + 1), fill=colour)
            sheet.paste(image.Image.fromarray(_thumbnail(source, row)), (left, top + CAPTION))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())


Row = tuple[str, list[tuple[int, tuple[int, int, int]]]]


def _groups(out: Path, ids: np.ndarray) -> list[Row]:
    """The largest components of duplicates, then some that touched a reference."""
    first = out / "dedup/groups/groups.parquet"
    labels, kept = read_column(first, "component"), read_column(first, "kept")
    second = out / "relative-dedup/groups/groups.parquet"
    dropped = np.zeros(len(labels), bool)
    if second.exists():
        again = read_column(second, "component")
        dropped = np.isin(again, again[read_column(second, "touched")])
    sizes = np.bincount(labels)
    rows: list[Row] = []
    for label in np.argsort(-sizes, kind="stable")[:GROUPS]:
        if sizes[label] < 2:
            break
        members = np.flatnonzero(labels == label)
        colours = [RED if dropped[m] else GREEN if kept[m] else WHITE for m in members]
        rows.append((f"{len(members)} duplicates, one kept", list(zip(ids[members].tolist(), colours))))
    touched = np.flatnonzero(dropped)
    if len(touched):
        rows.append(
            (
                f"{len(touched)} images dropped with their components: near a reference",
                [(int(ids[m]), RED) for m in touched],
            )
        )
    return rows


def _clusters(out: Path) -> list[Row]:
    """Clusters of the coarsest level with the most chosen images."""
    manifest = out / "manifest.parquet"
    import pyarrow.parquet as pq

    level = max(name for name in pq.read_schema(manifest).names if name.startswith("level_"))
    labels, ids = read_column(manifest, level), read_column(manifest, "id")
    sizes = np.bincount(labels)
    rows: list[Row] = []
    for label in np.argsort(-sizes, kind="stable")[:CLUSTERS]:
        members = ids[labels == label].tolist()
        if members:
            rows.append((f"cluster {label}: {len(members)} images chosen", [(m, WHITE) for m in members]))
    return rows


def _ids(out: Path) -> np.ndarray:
    return np.concatenate([read_column(path, "id") for path in sorted((out / "copies/pool").glob("rows-*.parquet"))])


def _thumbnail(source: Source, row: int) -> np.ndarray:
    try:
        return resized(torch.from_numpy(source[row].image), SIDE).contiguous().numpy()
    except DataError:
        return np.full((SIDE, SIDE, 3), 127, np.uint8)


def _image() -> Any:
    try:
        import PIL.Image
        import PIL.ImageDraw
    except ImportError as error:
        raise MissingExtra("pillow", "vision", "it draws the contact sheet") from error
    return PIL

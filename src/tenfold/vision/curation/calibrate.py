"""Calibration of near-duplicate thresholds: plants copies, looks what they score for an encoder, and what other pairs score.

    $ tenfold vision curate WEIGHTS --pool DIR --target 1000 --out OUT --calibrate

Copies of some images of the pool are re-encoded (JPEG, quality 40), halved in size, and cropped (95 % of each side, at a
random place). `recall` at a threshold is the share of copies above it. Pairs of the pool's own images above it are called
false: some may be true duplicates of the pool, so their number is an upper bound. What counts is the largest component
that they form, because one false bridge costs a whole component. Pairs as alike as the better half of the planted copies are
taken for the pool's own copies (sizes of a photograph, frames of a video), and an encoder is refused when the threshold joins
more than a tenth of the pool besides.

DINOv2's 0.6 and 0.45 (arXiv 2304.07193) belong to SSCD. For any encoder the choice here is: for duplicates the largest
threshold with the wanted recall; against references the smallest one below it whose largest component stays small, since
a leak costs more than an image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.data.atomic import write_atomic
from tenfold.data.sample import Sample
from tenfold.errors import DataError, UsageError
from tenfold.shards.executor import map_function
from tenfold.vision.curation.duplicates import hashes, read_edges
from tenfold.vision.curation.embeddings import Encoder, Vectors, opencv, opened, read_column, read_sample, write_shard
from tenfold.vision.curation.neighbors import components

KINDS = ("re-encoded", "resized", "cropped")
QUALITY, SHRINK, CROP = 40, 0.5, 0.95
PLANTED = 1000  # images that are copied
STEP = 0.01  # of the thresholds that are tried
BELOW = 0.10  # how far below the threshold for duplicates that against references may lie
RECALL = 0.995  # share of planted copies that must be found: other copies then stay above 0.99
LARGEST = 0.001  # largest component allowed against references, as a share of the pool
BLIND = 0.1  # share of the pool that one component joins when an encoder cannot tell copies from other images


@dataclass(frozen=True)
class Plant:
    """Images of the pool, by their ids, to be copied; the crops are drawn from `seed` and the id. `inputs` is the digest of the
    pool's shards: other images under the same ids are planted again."""

    source: Path
    ids: tuple[int, ...]
    seed: int
    inputs: str

    @property
    def name(self) -> str:
        return f"copies-of-{self.ids[0]:010}.parquet"


@dataclass(frozen=True)
class Calibration:
    """What was chosen, for whom, and the table that it was chosen from (`floor` is its lowest threshold)."""

    encoder: Encoder
    threshold: float
    reference_threshold: float
    floor: float
    images: int
    table: list[dict[str, Any]]

    def save(self, path: Path) -> None:
        write_atomic(path, (json.dumps(asdict(self), indent=2) + "\n").encode())


class CannotTell(UsageError):
    """No threshold separates copies from other images; `calibration` has the table that says so."""

    def __init__(self, said: str, calibration: Calibration) -> None:
        super().__init__(said)
        self.calibration = calibration


def load_calibration(path: Path, encoder: Encoder) -> Calibration:
    """Raises UsageError when another encoder was calibrated, DataError when the file cannot be used."""
    from tenfold.config import from_dict
    from tenfold.data.readers import read_json

    values = read_json(path)
    try:
        made_by = from_dict(
            Encoder, values.pop("describe" if "describe" in values else "encoder")
        )  # version 0.1: describe
        found = Calibration(encoder=made_by, **values)
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(f"{path} is not a calibration ({error}). Delete it and run with --calibrate.") from error
    if found.encoder != encoder:
        raise UsageError(f"{path} was made with {found.encoder.by}, not {encoder.by}. Run with --calibrate.")
    return found


def choose_planted(shards: Sequence[Path], seed: int, planted: int = PLANTED) -> np.ndarray:
    """Ids of the images that are copied, sorted; not those in which the encoder sees nothing (a blank image)."""
    seen = np.concatenate([np.linalg.norm(part, axis=1) > 0.5 for part in Vectors(shards)])
    ids = np.concatenate([read_column(path, "id") for path in shards])[seen]
    if not len(ids):
        raise UsageError(
            "the encoder sees nothing in any image of the pool, so no copy can be planted: set --threshold."
        )
    return np.sort(np.random.default_rng((seed, 2)).choice(ids, min(planted, len(ids)), replace=False))


@map_function("vision.plant_copies", formerly=("tenfold.vision.calibrate:plant_copies",))
def plant_copies(encoder: Encoder, plant: Plant, target: Path) -> None:
    """Embeds three copies of each image; a row's `id` is its original's, its `name` the kind."""
    source = opened(plant.source)

    def copies() -> Any:
        for number in plant.ids:
            sample, reason = read_sample(source, number)
            if sample is None:
                yield number, None, reason
                continue
            rng = np.random.default_rng((plant.seed, 3, number))
            for kind, image in zip(KINDS, copies_of(sample.image, rng)):
                yield number, Sample(image, None, kind), ""

    write_shard(target, encoder, copies())


def copies_of(image: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """The copies of one image, in the order of KINDS."""
    cv2 = opencv()
    height, width = image.shape[:2]
    encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    half = (max(1, round(width * SHRINK)), max(1, round(height * SHRINK)))
    h, w = max(1, round(height * CROP)), max(1, round(width * CROP))
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    return [
        np.ascontiguousarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1]),
        cv2.resize(image, half, interpolation=cv2.INTER_AREA),
        np.ascontiguousarray(image[top : top + h, left : left + w]),
    ]


def copy_scores(copies: Sequence[Path], shards: Sequence[Path]) -> dict[str, np.ndarray]:
    """Similarity of every copy to its original, by kind."""
    from tenfold.vision.curation.cluster import gather

    ids = np.concatenate([read_column(path, "id") for path in shards])
    originals = np.concatenate([read_column(path, "id") for path in copies])
    kinds = np.array([kind for path in copies for kind in read_column(path, "name")])
    rows = np.searchsorted(ids, originals)  # ids ascend, because shards follow the source
    found = np.einsum("nd,nd->n", np.concatenate(list(Vectors(copies))), gather(Vectors(shards), rows))
    return {kind: found[kinds == kind] for kind in KINDS}


def wanted_floor(scores: dict[str, np.ndarray]) -> float:
    """The lowest threshold worth trying: a little below the one that finds the wanted share of copies."""
    return max(0.0, round(_by_recall(scores) - BELOW, 2))


def calibrate(
    encoder: Encoder, scores: dict[str, np.ndarray], edges: Sequence[Path], shards: Sequence[Path], floor: float
) -> Calibration:
    """The table from `floor` to 1 and the choice. Raises CannotTell when no threshold finds copies without joining
    images that are none; its message has the numbers."""
    marks = hashes(list(shards))
    left, right, similarity = (np.concatenate(part) for part in zip(*(read_edges(path) for path in edges)))
    other = (left < right) & (marks[left] != marks[right])  # equal pixels are not a mistake
    left, right, similarity = left[other], right[other], similarity[other]
    every = np.concatenate(list(scores.values()))
    allowed = max(2, math.ceil(LARGEST * len(marks)))
    table = []
    for threshold in np.round(np.arange(floor, 1.0, STEP), 2):
        above = similarity > threshold
        largest = int(np.bincount(components(len(marks), left[above], right[above])).max())
        row = {"threshold": float(threshold), "recall": _share(every, threshold)}
        row |= {kind: _share(values, threshold) for kind, values in scores.items()}
        table.append({**row, "false pairs": int(above.sum()), "largest component": largest})
    chosen = _by_recall(scores)
    largest = {row["threshold"]: row["largest component"] for row in table}
    at = next(row for row in table if row["threshold"] >= chosen)
    small = [t for t in largest if t <= chosen and largest[t] <= max(allowed, at["largest component"])]
    found = Calibration(encoder, chosen, min(small, default=chosen), floor, len(marks), table)
    joined = _other_images_joined(len(marks), left, right, similarity, float(at["threshold"]), float(np.median(every)))
    limit = max(allowed, math.floor(BLIND * len(marks)))
    if joined > limit:
        raise CannotTell(
            f"{encoder.by} cannot tell copies from other images here: the threshold {at['threshold']:.2f}, which finds "
            f"{at['recall']:.1%} of the copies, joins {joined} images of {len(marks):,} into one component; allowed are "
            f"{limit}. Give another encoder with --copies, or set --threshold yourself.",
            found,
        )
    return found


def _other_images_joined(
    images: int, left: np.ndarray, right: np.ndarray, similarity: np.ndarray, threshold: float, sure: float
) -> int:
    """Images in the largest component above a threshold, where those that are as alike as the better half of the planted copies
    (`sure`) count as one: they are the pool's own copies. Not where that would be most of the pool: an encoder for which all
    images are alike has no copies to tell."""
    above = similarity > threshold
    groups = np.arange(images)
    copies = similarity >= sure
    own = components(images, left[copies], right[copies])
    if np.bincount(own).max() <= images / 2:
        groups = own
    labels = components(
        images, np.concatenate([left[above], np.arange(images)]), np.concatenate([right[above], groups])
    )
    _, first = np.unique(groups, return_index=True)
    return int(np.bincount(labels[first]).max())


def show_table(calibration: Calibration) -> str:
    """Every fifth threshold and the two chosen, for people."""
    lines = [f"{'threshold':>9} {'recall':>7} " + " ".join(f"{kind:>10}" for kind in KINDS) + "  false pairs  largest"]
    for number, row in enumerate(calibration.table):
        marks = [
            name
            for name, value in (
                ("duplicates", calibration.threshold),
                ("references", calibration.reference_threshold),
            )
            if value == row["threshold"]
        ]
        if marks or number % 5 == 0:
            kinds = " ".join(f"{row[kind]:>10.3f}" for kind in KINDS)
            tail = f"{row['false pairs']:>12,} {row['largest component']:>8,}"
            lines.append(f"{row['threshold']:>9.2f} {row['recall']:>7.3f} {kinds} {tail}  {', '.join(marks)}".rstrip())
    return "\n".join(lines)


def _by_recall(scores: dict[str, np.ndarray]) -> float:
    """The largest threshold of the grid that still finds the wanted share of all copies."""
    every = np.sort(np.concatenate(list(scores.values())))
    lost = int((1 - RECALL) * len(every))  # copies that may be missed
    return max(0.0, round(math.floor((float(every[lost]) - 1e-6) / STEP) * STEP, 2))


def _share(values: np.ndarray, threshold: float) -> float:
    return round(float((values > threshold).mean()), 4) if len(values) else 1.0

"""Near-duplicates within a pool and against reference sets: the map and reduce functions of `tenfold vision curate`.

    exact_edges | approximate_edges    a pair of shards -> edges (query, neighbor, similarity) above `floor`
    merge_edges                        all edges of a shard's rows -> the k best of each
    group_pool                         all edges -> (row, component, kept): one image is kept per component
    touch_references, drop_touched     -> (row, component, touched, kept): a component that touches a reference goes whole

DINOv2, arXiv 2304.07193, appendix A.3: k = 64, similarity above 0.6, and above 0.45 against evaluation sets. Both numbers
belong to SSCD (see calibrate.py). Rows are numbered through all shards of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.shards.executor import map_function
from tenfold.vision.curation.embeddings import Vectors, parquet, read_column, read_vectors
from tenfold.vision.curation.neighbors import (
    TopK,
    across,
    approximate_pair,
    components,
    fill_index,
    train_index,
    within,
)

Edges = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Pair:
    """Two shards of the pool and the numbers of their first rows. `inputs` is the digest of what made them: other inputs
    make another item, which is done again. `index` is the FAISS index of the right shard."""

    left: Path
    right: Path
    first_left: int
    first_right: int
    k: int
    floor: float
    inputs: str
    index: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.first_left:010}-{self.first_right:010}.parquet"


@dataclass(frozen=True)
class Merge:
    """The edge files in which rows `first` to `first + rows` are queries."""

    paths: tuple[Path, ...]
    first: int
    rows: int
    k: int
    inputs: str

    @property
    def name(self) -> str:
        return f"rows-{self.first:010}.parquet"


@dataclass(frozen=True)
class Group:
    """Edge files and shards of the whole pool; `touching` (files of touch_references) when references are at stake."""

    edges: tuple[Path, ...]
    shards: tuple[Path, ...]
    threshold: float
    inputs: str
    touching: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Index:
    """A shard to put into a trained index; without one, shards to draw the training sample from."""

    shards: tuple[Path, ...]
    inputs: str
    trained: Path | None = None
    sample: int = 200_000
    seed: int = 0


@map_function("vision.exact_edges", formerly=("tenfold.vision.duplicates:exact_edges",))
def exact_edges(pair: Pair, target: Path) -> None:
    """Both directions at once: every product serves the rows of both shards."""
    left, first = read_vectors(pair.left), pair.first_left
    best = TopK(len(left), pair.k, pair.floor)
    if pair.left == pair.right:
        within(left, best, first)
        write_edges(target, best.result().edges(first))
        return
    right = read_vectors(pair.right)
    other = TopK(len(right), pair.k, pair.floor)
    across(left, right, best, other, first, pair.first_right)
    sides = best.result().edges(first), other.result().edges(pair.first_right)
    write_edges(target, tuple(np.concatenate(both) for both in zip(*sides)))  # type: ignore[arg-type]


@map_function("vision.approximate_edges", formerly=("tenfold.vision.duplicates:approximate_edges",))
def approximate_edges(pair: Pair, target: Path) -> None:
    """Rows of the left shard against the index of the right; similarities are those of the stored vectors."""
    assert pair.index is not None, "the right shard has no index"
    left = read_vectors(pair.left)
    best = TopK(len(left), pair.k, pair.floor)
    approximate_pair(left, pair.index, read_vectors(pair.right), best, pair.first_right, pair.left == pair.right)
    write_edges(target, best.result().edges(pair.first_left))


@map_function("vision.build_index", formerly=("tenfold.vision.duplicates:build_index",))
def build_index(item: Index, target: Path) -> None:
    if item.trained is not None:
        fill_index(item.trained, read_vectors(item.shards[0]), target)
        return
    from tenfold.vision.curation.cluster import gather

    vectors = Vectors(item.shards)
    count = min(item.sample, vectors.rows)
    rows = np.sort(np.random.default_rng(item.seed).choice(vectors.rows, count, replace=False))
    train_index(gather(vectors, rows), target)


@map_function("vision.merge_edges", formerly=("tenfold.vision.duplicates:merge_edges",))
def merge_edges(merge: Merge, target: Path) -> None:
    best = TopK(merge.rows, merge.k)
    for path in merge.paths:
        query, neighbor, similarity = read_edges(path)
        mine = (query >= merge.first) & (query < merge.first + merge.rows)
        best.add(query[mine] - merge.first, neighbor[mine], similarity[mine])
    write_edges(target, best.result().edges(merge.first))


@map_function("vision.group_pool", formerly=("tenfold.vision.duplicates:group_pool",))
def group_pool(group: Group, target: Path) -> None:
    """One image of each component is kept: the one with most pixels, the first of them when there are several."""
    shards = list(group.shards)
    pixels = np.concatenate([read_column(path, "pixels") for path in shards])
    labels = component_labels(group, hashes(shards))
    order = np.lexsort((np.arange(len(labels)), -pixels, labels))
    first = np.ones(len(order), bool)
    first[1:] = labels[order[1:]] != labels[order[:-1]]
    kept = np.zeros(len(order), bool)
    kept[order[first]] = True
    write_columns(target, row=np.arange(len(labels)), component=labels, kept=kept)


@map_function("vision.touch_references", formerly=("tenfold.vision.duplicates:touch_references",))
def touch_references(pair: Pair, target: Path) -> None:
    """For every row of the pool's shard (left) its nearest image of a reference shard (right), above `floor`; equal pixels
    always count, though the embedding may see nothing in them (a blank image)."""
    left = read_vectors(pair.left)
    right = read_vectors(pair.right, left.shape[1] if len(left) else None)
    best = TopK(len(left), 1, pair.floor)
    if len(left) and len(right):
        across(left, right, best, None, pair.first_left, pair.first_right)
    query, neighbor, similarity = best.result().edges(pair.first_left)
    marks, others = read_column(pair.left, "sha256"), read_column(pair.right, "sha256")
    at = {digest: number for number, digest in enumerate(others)}
    near = set(query.tolist())
    equal = [row for row, digest in enumerate(marks) if digest in at and row + pair.first_left not in near]
    added = np.array(equal, query.dtype), np.array([at[marks[row]] for row in equal], neighbor.dtype)
    ones = np.ones(len(equal), similarity.dtype)
    sides = (query, added[0] + pair.first_left), (neighbor, added[1] + pair.first_right), (similarity, ones)
    write_edges(target, tuple(np.concatenate(both) for both in sides))  # type: ignore[arg-type]


def drop_touched(group: Group, target: Path) -> None:
    """A component at the reference threshold goes whole when one of its images is near a reference image."""
    labels = component_labels(group, hashes(list(group.shards)))
    touched = np.zeros(len(labels), bool)
    for path in group.touching:
        touched[read_edges(path)[0]] = True
    kept = ~np.isin(labels, labels[touched])
    write_columns(target, row=np.arange(len(labels)), component=labels, touched=touched, kept=kept)


def component_labels(group: Group, marks: np.ndarray) -> np.ndarray:
    """Components of the edges above the threshold; rows with equal marks (the same pixels) are always joined."""
    left, right = [], []
    for path in group.edges:
        query, neighbor, similarity = read_edges(path)
        above = similarity > group.threshold
        left.append(query[above])
        right.append(neighbor[above])
    order = np.argsort(marks, kind="stable")
    same = np.flatnonzero(marks[order[1:]] == marks[order[:-1]])
    left.append(order[same])
    right.append(order[same + 1])
    return components(len(marks), np.concatenate(left), np.concatenate(right))


def hashes(shards: Sequence[Path]) -> np.ndarray:
    """The first 64 bits of each image's SHA-256."""
    digests = [digest[:16] for path in shards for digest in read_column(path, "sha256")]
    return np.array([int(digest, 16) for digest in digests], np.uint64)


def write_edges(target: Path, edges: Edges) -> None:
    query, neighbor, similarity = edges
    write_columns(target, query=query, neighbor=neighbor, similarity=similarity)


def read_edges(path: Path) -> Edges:
    return read_column(path, "query"), read_column(path, "neighbor"), read_column(path, "similarity")


def write_columns(target: Path, **columns: Any) -> None:
    import pyarrow as pa

    parquet().write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), target)

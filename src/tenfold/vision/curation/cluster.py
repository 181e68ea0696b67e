"""Hierarchical k-means and balanced sampling from its tree: rare concepts keep their place beside common ones.

    tree = hierarchical_kmeans([vectors], levels=(1000, 100, 10), seed=0)
    chosen = balanced_sample(tree, target=5000, strategy="random", seed=0)       row numbers, sorted

k-means by itself puts most clusters where most images are. Clustering the *centroids* again spreads the upper levels over the
space instead, and resampling (each cluster is represented by its few nearest members) evens the lower ones out. A
target is then divided from the top down, equally as far as the clusters reach. arXiv 2405.15613, sections 3.2 to 3.4;
DINOv3 (arXiv 2508.10104, section 3.1) uses five levels.

k-means is map and reduce: every shard gives partial sums in float64, and they are added in the order of the shards, so
the bytes are the same for any number of workers. A `Spread` carries the map: this process, or `map_shards` (curate.py).

    N rows   D width   K clusters
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from tenfold.config import require
from tenfold.errors import DataError, UsageError, unknown_name

CHUNK = 4096  # rows whose distances to all centroids are held at a time
START_ROWS = 50  # vectors per cluster that k-means++ looks at, drawn at random from all
RESAMPLE_ROUNDS, RESAMPLE_SIZES = (
    (1, 10, 10, 10),
    (1, 10, 5, 3),
)  # 2405.15613, table 7; the last holds for further levels
STRATEGIES = ("random", "closest")


@dataclass(frozen=True)
class Tree:
    """`parents[0]` (N,): the level-1 cluster of each row; `parents[l]` (K_l,): the level-(l+1) cluster of each level-l
    cluster. `distance` (N,): of each row to its level-1 centroid, squared. `centroids[l]` (K_l+1, D)."""

    parents: tuple[np.ndarray, ...]
    centroids: tuple[np.ndarray, ...]
    distance: np.ndarray

    def level(self, number: int) -> Int64[np.ndarray, " n"]:
        """The cluster of each row at a level, 1 being the finest."""
        labels = self.parents[0]
        for parent in self.parents[1:number]:
            labels = parent[labels]
        return labels


@dataclass(frozen=True)
class Partial:
    """One shard's part of an iteration: sums (K, D) float64 and counts (K,); label and squared distance of its rows."""

    sums: np.ndarray
    counts: np.ndarray
    labels: np.ndarray
    distance: np.ndarray


@runtime_checkable
class Spread(Protocol):
    """Who carries the map over the shards: this process, or workers (curate.py)."""

    def move(self, centroids: np.ndarray) -> np.ndarray:
        """The means of what is nearest to each centroid."""
        ...

    def settle(self, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Label and squared distance of every row."""
        ...


def assign(vectors: Float32[np.ndarray, "n d"], centroids: Float32[np.ndarray, "k d"]) -> Partial:
    """The map of k-means: the nearest centroid of every row (the lower number when two are as near)."""
    labels, distance = np.empty(len(vectors), np.int64), np.empty(len(vectors), np.float32)
    half = 0.5 * np.einsum("kd,kd->k", centroids, centroids)
    for start in range(0, len(vectors), CHUNK):
        rows = vectors[start : start + CHUNK]
        score = rows @ centroids.T
        score -= half
        best = score.argmax(1)
        labels[start : start + CHUNK] = best
        squares = np.einsum("nd,nd->n", rows, rows) - 2 * score[np.arange(len(rows)), best]
        distance[start : start + CHUNK] = np.maximum(squares, 0)
    sums = np.zeros(centroids.shape)
    np.add.at(sums, labels, vectors)
    return Partial(sums, np.bincount(labels, minlength=len(centroids)), labels, distance)


@dataclass(frozen=True)
class InProcess:
    """The map done here, a shard at a time."""

    shards: Sequence[np.ndarray]

    def move(self, centroids: Float32[np.ndarray, "k d"]) -> Float32[np.ndarray, "k d"]:
        return reduce_means((assign(shard, centroids) for shard in self.shards), centroids)

    def settle(self, centroids: Float32[np.ndarray, "k d"]) -> tuple[np.ndarray, np.ndarray]:
        parts = [assign(shard, centroids) for shard in self.shards]
        return np.concatenate([p.labels for p in parts]), np.concatenate([p.distance for p in parts])


def kmeans(
    shards: Sequence[np.ndarray],
    k: int,
    rng: np.random.Generator,
    iterations: int = 50,
    spread: Spread | None = None,
) -> tuple[Float32[np.ndarray, "k d"], Int64[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """Lloyd's iterations from a k-means++ start: centroids, label and squared distance of every row.

    Ends early when no centroid moves. A cluster that loses all its rows keeps its place.
    """
    spread = spread or InProcess(shards)
    centroids = plus_plus(_draw(shards, START_ROWS * k, rng), k, rng)
    for _ in range(iterations):
        moved = spread.move(centroids)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids, *spread.settle(centroids)


def plus_plus(vectors: Float32[np.ndarray, "n d"], k: int, rng: np.random.Generator) -> Float32[np.ndarray, "k d"]:
    """k-means++: every further centroid is a row drawn with the square of its distance to those chosen as weight."""
    chosen = np.empty((k, vectors.shape[1]), np.float32)
    squares = np.einsum("nd,nd->n", vectors, vectors)
    nearest = np.full(len(vectors), np.inf, np.float32)
    row = int(rng.integers(len(vectors)))
    for number in range(k):
        chosen[number] = vectors[row]
        nearest = np.minimum(nearest, np.maximum(squares + squares[row] - 2 * (vectors @ vectors[row]), 0))
        nearest[row] = 0
        total = np.cumsum(nearest, dtype=np.float64)
        # With fewer different rows than clusters all weights become zero: any row will do.
        draw = rng.random() * total[-1] if total[-1] > 0 else 0.0
        row = int(np.searchsorted(total, draw, "right")) if total[-1] > 0 else int(rng.integers(len(vectors)))
        row = min(row, len(vectors) - 1)
    return chosen


def hierarchical_kmeans(
    shards: Sequence[np.ndarray],
    levels: Sequence[int],
    seed: int = 0,
    iterations: int = 50,
    rounds: Sequence[int] = RESAMPLE_ROUNDS,
    sizes: Sequence[int] = RESAMPLE_SIZES,
    spread: Spread | None = None,
) -> Tree:
    """The tree. Level 1 clusters the rows, level l the centroids of level l-1.

    levels: clusters of each level, falling. rounds and sizes: resampling of each level (the last entry holds for further
    ones). spread: who carries the map over the shards of level 1; the levels above are small and stay here.
    Raises DataError when there are fewer rows than clusters.
    """
    total = sum(len(shard) for shard in shards)
    require(len(levels) >= 1 and all(k >= 1 for k in levels), "levels", tuple(levels), "whole numbers >= 1")
    falling = all(a > b for a, b in pairwise(levels))
    require(falling, "levels", tuple(levels), "numbers of clusters that fall from level to level")
    if total < levels[0]:
        raise DataError(f"{total:,} vectors cannot make {levels[0]:,} clusters: choose smaller levels.")
    parents, all_centroids, distance = [], [], np.empty(0, np.float32)
    data = shards
    for number, k in enumerate(levels):
        rng = np.random.default_rng((seed, number))
        over = (spread if number == 0 else None) or InProcess(data)
        centroids, labels, near = kmeans(data, k, rng, iterations, over)
        size = sizes[min(number, len(sizes) - 1)]
        for _ in range(rounds[min(number, len(rounds) - 1)]):
            sample = gather(data, nearest_members(labels, near, k, size))
            centroids, _, _ = kmeans([sample], min(k, len(sample)), rng, iterations)
            labels, near = over.settle(centroids)
        centroids, labels = _without_empty(centroids, labels)
        parents.append(labels)
        all_centroids.append(centroids)
        distance = near if number == 0 else distance
        data = [centroids]
    return Tree(tuple(parents), tuple(all_centroids), distance)


def nearest_members(labels: np.ndarray, distance: np.ndarray, k: int, size: int) -> Int64[np.ndarray, " m"]:
    """Rows that are among the `size` nearest to their own centroid, sorted by cluster and distance."""
    order = np.lexsort((distance, labels))
    counts = np.bincount(labels, minlength=k)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return order[rank < size]


def gather(shards: Sequence[np.ndarray], rows: Int64[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
    """Those rows, in that order, reading each shard once."""
    starts = np.cumsum([0, *(len(shard) for shard in shards)])
    found: np.ndarray | None = None
    for number in range(len(shards)):
        inside = np.flatnonzero((rows >= starts[number]) & (rows < starts[number + 1]))
        if len(inside):
            shard = shards[number]
            found = np.empty((len(rows), shard.shape[1]), np.float32) if found is None else found
            found[inside] = shard[rows[inside] - starts[number]]
    assert found is not None, "no rows to gather"
    return found


def balanced_sample(
    tree: Tree,
    target: int,
    strategy: str = "random",
    multiplier: int = 1,
    seed: int = 0,
    available: np.ndarray | None = None,
) -> Int64[np.ndarray, " t"]:
    """`target` row numbers, sorted, spread over the tree from the top down; all rows when there are no more.

    strategy: "random" or "closest" members of a level-1 cluster. multiplier: how often a row may be taken. available (N,) bool:
    rows that may be taken at all. Section 3.4 of 2405.15613.
    """
    if strategy not in STRATEGIES:
        raise unknown_name("strategy", strategy, STRATEGIES)
    require(target >= 0, "target", target, "a whole number >= 0")
    require(multiplier >= 1, "multiplier", multiplier, "a whole number >= 1")
    rng = np.random.default_rng((seed, 1))
    rows = np.arange(len(tree.parents[0])) if available is None else np.flatnonzero(available)
    sizes = [multiplier * np.bincount(tree.parents[0][rows], minlength=len(tree.centroids[0]))]
    for parent, centroids in zip(tree.parents[1:], tree.centroids[1:]):
        sizes.append(np.bincount(parent, weights=sizes[-1], minlength=len(centroids)).astype(np.int64))
    quota = shares(sizes[-1], target, rng)
    for level in range(len(sizes) - 2, -1, -1):
        below = np.zeros(len(sizes[level]), np.int64)
        children = _groups(tree.parents[level + 1], len(quota))
        for cluster in np.flatnonzero(quota):
            below[children[cluster]] = shares(sizes[level][children[cluster]], int(quota[cluster]), rng)
        quota = below
    members = _groups(tree.parents[0][rows], len(quota))
    taken = [_take(rows[members[c]], int(quota[c]), tree.distance, strategy, rng) for c in np.flatnonzero(quota)]
    return np.sort(np.concatenate(taken)) if taken else np.empty(0, np.int64)


def shares(sizes: Int64[np.ndarray, " c"], target: int, rng: np.random.Generator) -> Int64[np.ndarray, " c"]:
    """`target` divided over clusters as equally as their sizes a_i allow: min(c, a_i) with the largest integer c whose sum
    stays within the target, and what is left as +1 to clusters with a_i > c, drawn at random."""
    if sizes.sum() <= target:
        return sizes.astype(np.int64)
    ordered = np.sort(sizes)
    full = np.concatenate([[0], np.cumsum(ordered)])  # what the m smallest give when they give everything
    left = len(sizes) - np.arange(len(sizes))
    level = (target - full[:-1]) // left  # c if exactly the m smallest are exhausted
    m = int(np.argmax(ordered > level))  # the first m for which that is consistent
    share = np.minimum(sizes, level[m]).astype(np.int64)
    larger = np.flatnonzero(sizes > level[m])
    share[rng.permutation(larger)[: target - int(share.sum())]] += 1
    return share


def _take(rows: np.ndarray, count: int, distance: np.ndarray, strategy: str, rng: np.random.Generator) -> np.ndarray:
    """`count` of a cluster's rows; each is taken once more before any is taken twice more."""
    whole, rest = divmod(count, len(rows))
    order = rng.permutation(len(rows)) if strategy == "random" else np.lexsort((rows, distance[rows]))
    return np.concatenate([np.repeat(rows, whole), rows[order[:rest]]])


def _groups(labels: np.ndarray, k: int) -> list[np.ndarray]:
    """Positions of each label, ascending."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=k))[:-1])


def reduce_means(parts: Iterable[Partial], before: np.ndarray) -> Float32[np.ndarray, "k d"]:
    """New centroids: float64 sums in the order of the shards, whoever worked on them."""
    sums, counts = np.zeros(before.shape), np.zeros(len(before), np.int64)
    for part in parts:
        sums += part.sums
        counts += part.counts
    moved = before.copy()
    held = counts > 0
    moved[held] = (sums[held] / counts[held, None]).astype(np.float32)
    return moved


def _draw(shards: Sequence[np.ndarray], count: int, rng: np.random.Generator) -> Float32[np.ndarray, "m d"]:
    total = sum(len(shard) for shard in shards)
    rows = np.arange(total) if count >= total else np.sort(rng.choice(total, count, replace=False))
    return gather(shards, rows)


def _without_empty(centroids: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clusters that hold something, renumbered in their order."""
    held = np.unique(labels)
    if len(held) == 0:
        raise UsageError("there is nothing to cluster.")
    return centroids[held], np.searchsorted(held, labels)

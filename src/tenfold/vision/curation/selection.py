"""Retrieval and balanced sampling, from a deduplicated pool to the rows of a manifest: the last functions of curation.

    cluster_pool       unit vectors of the survivors -> a folder: tree.parquet (row, distance, level_1 ...), centroids
    retrieve_nearest   one shard of query images -> (row, similarity): the k survivors nearest to each query
    retrieve_clusters  all query images -> (row, similarity): members of the clusters that hold more than 3 of them
    choose             everything -> the manifest

Retrieval: DINOv2 (arXiv 2304.07193), appendix A.4. Balanced sampling: cluster.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tenfold.data.atomic import write_atomic
from tenfold.shards.executor import map_function, map_shards
from tenfold.vision.curation.cluster import (
    InProcess,
    Partial,
    Tree,
    assign,
    balanced_sample,
    hierarchical_kmeans,
    reduce_means,
)
from tenfold.vision.curation.duplicates import write_columns
from tenfold.vision.curation.embeddings import Vectors, parquet, read_column, read_vectors
from tenfold.vision.curation.neighbors import TopK, across


@dataclass(frozen=True)
class Survivors:
    """Shards of features, and the file whose `kept` says which of their rows are left."""

    shards: tuple[Path, ...]
    kept: Path
    inputs: str


@dataclass(frozen=True)
class Clustering:
    """Levels and resampling (see cluster.hierarchical_kmeans)."""

    levels: tuple[int, ...]
    iterations: int
    seed: int


@dataclass(frozen=True)
class Queries:
    """Shards of query features, for one retrieval. `tree` and `level` when whole clusters are retrieved."""

    survivors: Survivors
    queries: tuple[Path, ...]
    k: int
    tree: Path | None = None
    level: int = 1
    per_cluster: int = 10_000
    min_queries: int = 3
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.queries[0].parent.name}-{self.queries[0].stem}.parquet"


@dataclass(frozen=True)
class Choice:
    """What the manifest is made from. `retrieved` are the files of each query set."""

    survivors: Survivors
    tree: Path
    retrieved: tuple[tuple[Path, ...], ...]
    target: int
    share: float
    cap: int
    strategy: Literal["random", "closest"]
    multiplier: int
    seed: int


class Kept(Sequence[np.ndarray]):
    """The survivors' vectors, shard by shard; `rows` are their numbers in the whole pool."""

    def __init__(self, survivors: Survivors) -> None:
        self.vectors = Vectors(survivors.shards)
        self.mask = read_column(survivors.kept, "kept").astype(bool)
        self.rows = np.flatnonzero(self.mask)

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, index: Any) -> Any:
        start, stop = self.vectors.starts[index], self.vectors.starts[index + 1]
        return self.vectors[index][self.mask[start:stop]]


@dataclass(frozen=True)
class Step:
    """One shard in one iteration."""

    survivors: Survivors
    shard: int
    centroids: Path

    @property
    def name(self) -> str:
        return f"shard-{self.shard:06}.npz"


class OverWorkers:
    """k-means' map as jobs of `map_shards`. Moved centroids stay on disk, so a clustering that was stopped replays what it
    has and continues; the partial sums of a step go once it is reduced."""

    def __init__(self, survivors: Survivors, folder: Path, executor: Literal["local", "ray"], workers: int) -> None:
        self.survivors, self.folder, self.workers = survivors, folder, workers
        self.executor: Literal["local", "ray"] = executor
        self._shards, self._turn = len(survivors.shards), 0

    def move(self, centroids: np.ndarray) -> np.ndarray:
        done = self.folder / f"moved-{self._turn + 1:05}.npy"
        if done.exists():
            self._turn += 1
            return np.load(done)
        moved = reduce_means(self._parts(centroids), centroids)
        _save(done, moved)
        shutil.rmtree(self.folder / f"step-{self._turn:05}", ignore_errors=True)
        return moved

    def settle(self, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = list(self._parts(centroids))
        return np.concatenate([p.labels for p in parts]), np.concatenate([p.distance for p in parts])

    def clear(self) -> None:
        """Removes what only an unfinished clustering needs."""
        for path in self.folder.iterdir():
            if path.is_dir() and path.name.startswith("step-"):
                shutil.rmtree(path)
            elif path.suffix == ".npy":
                path.unlink()

    def _parts(self, centroids: np.ndarray) -> list[Partial]:
        self._turn += 1
        path = self.folder / f"centroids-{self._turn:05}.npy"
        _save(path, centroids)
        steps = [Step(self.survivors, shard, path) for shard in range(self._shards)]
        files = map_shards(
            assign_shard,
            steps,
            self.folder / f"step-{self._turn:05}",
            settings={},
            executor=self.executor,
            workers=self.workers,
            name=lambda step: step.name,
            label=f"k-means {self._turn}",
        ).paths
        parts = []
        for file in files:
            with np.load(file) as saved:
                parts.append(Partial(saved["sums"], saved["counts"], saved["labels"], saved["distance"]))
        return parts


@map_function("vision.assign_shard", formerly=("tenfold.vision.selection:assign_shard",))
def assign_shard(step: Step, target: Path) -> None:
    part = assign(Kept(step.survivors)[step.shard], np.load(step.centroids))
    with target.open("wb") as file:
        np.savez(file, sums=part.sums, counts=part.counts, labels=part.labels, distance=part.distance)


@map_function("vision.cluster_pool", formerly=("tenfold.vision.selection:cluster_pool",))
def cluster_pool(clustering: Clustering, survivors: Survivors, target: Path, spread: OverWorkers | None = None) -> None:
    """Writes the tree as a folder."""
    kept = Kept(survivors)
    over = spread or InProcess(kept)
    tree = hierarchical_kmeans(kept, clustering.levels, clustering.seed, clustering.iterations, spread=over)
    target.mkdir()
    labels = {f"level_{n + 1}": tree.level(n + 1) for n in range(len(tree.parents))}
    write_columns(target / "tree.parquet", row=kept.rows, distance=tree.distance, **labels)
    for number, centroids in enumerate(tree.centroids):
        np.save(target / f"centroids-{number + 1}.npy", centroids)


def read_tree(folder: Path) -> Tree:
    """The tree that cluster_pool wrote."""
    files = sorted(folder.glob("centroids-*.npy"))
    labels = [read_column(folder / "tree.parquet", f"level_{n + 1}") for n in range(len(files))]
    parents = [labels[0]]
    for lower, upper in pairwise(labels):
        parent = np.zeros(int(lower.max()) + 1, np.int64)
        parent[lower] = upper
        parents.append(parent)
    return Tree(tuple(parents), tuple(np.load(f) for f in files), read_column(folder / "tree.parquet", "distance"))


@map_function("vision.retrieve_nearest", formerly=("tenfold.vision.selection:retrieve_nearest",))
def retrieve_nearest(queries: Queries, target: Path) -> None:
    kept = Kept(queries.survivors)
    rows = read_vectors(queries.queries[0], kept.vectors.width)
    best = TopK(len(rows), queries.k)
    first = 0
    for number in range(len(kept)):
        shard = kept[number]
        if len(shard) and len(rows):
            across(rows, shard, best, None, 0, first)
        first += len(shard)
    _, found, similarity = best.result().edges()
    _write_best(target, kept.rows[found], similarity)


@map_function("vision.retrieve_clusters", formerly=("tenfold.vision.selection:retrieve_clusters",))
def retrieve_clusters(queries: Queries, target: Path) -> None:
    """Each cluster's members are drawn at random; their similarity is that of the cluster's share of queries, so that a
    cap keeps the clusters that the query set speaks for most."""
    assert queries.tree is not None, "clusters are retrieved from a tree"
    kept, tree = Kept(queries.survivors), read_tree(queries.tree)
    level = min(queries.level, len(tree.parents))
    centroids = tree.centroids[level - 1]
    asked = np.zeros(len(centroids), np.int64)
    total = 0
    for path in queries.queries:
        rows = read_vectors(path, kept.vectors.width)
        asked += assign(rows, centroids).counts
        total += len(rows)
    labels, rng = tree.level(level), np.random.default_rng((queries.seed, 4))
    rows, weight = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for cluster in np.flatnonzero(asked > queries.min_queries):
        members = rng.permutation(np.flatnonzero(labels == cluster))[: queries.per_cluster]
        rows.append(kept.rows[members])
        weight.append(np.full(len(members), asked[cluster] / total, np.float32))
    _write_best(target, np.concatenate(rows), np.concatenate(weight))


@map_function("vision.choose", formerly=("tenfold.vision.selection:choose",))
def choose(choice: Choice, target: Path) -> None:
    """Retrieved images first, at most `share` of the target and `cap` a query set, the most similar of them; the rest is
    sampled evenly from the clusters, without what was retrieved."""
    kept, tree = Kept(choice.survivors), read_tree(choice.tree)
    budget = int(choice.share * choice.target)
    why: dict[int, str] = {}
    for files in choice.retrieved:
        rows, similarity = (np.concatenate([read_column(f, name) for f in files]) for name in ("row", "similarity"))
        order = np.lexsort((rows, -similarity))
        _, first = np.unique(rows[order], return_index=True)
        wanted = rows[order][np.sort(first)][: choice.cap]
        for row in wanted[: max(0, budget - len(why))]:
            why.setdefault(int(row), "retrieved")
    free = ~np.isin(kept.rows, np.fromiter(why, np.int64, len(why)))
    remaining = choice.target - len(why)
    sampled = balanced_sample(tree, remaining, choice.strategy, choice.multiplier, choice.seed, free)
    taken, times = np.unique(sampled, return_counts=True)
    counts = dict.fromkeys(why, 1) | dict(zip(kept.rows[taken].tolist(), times.tolist()))
    rows = np.array(sorted(counts), np.int64)
    at = np.searchsorted(kept.rows, rows)
    shards = choice.survivors.shards
    names = [name for path in shards for name in read_column(path, "name")]
    digests = [digest for path in shards for digest in read_column(path, "sha256")]
    write_columns(
        target,
        id=np.concatenate([read_column(path, "id") for path in shards])[rows],
        name=[names[row] for row in rows],
        sha256=[digests[row] for row in rows],
        **{f"level_{n + 1}": tree.level(n + 1)[at] for n in range(len(tree.parents))},
        why=[why.get(int(row), "sampled") for row in rows],
        times=np.array([counts[int(row)] for row in rows], np.int64),
    )


def manifest_counts(path: Path) -> dict[str, int]:
    """How many rows stand in the manifest for which reason."""
    reasons = parquet().read_table(path, columns=["why"]).column("why").to_pylist()
    return {why: reasons.count(why) for why in ("retrieved", "sampled")}


def _write_best(target: Path, rows: np.ndarray, similarity: np.ndarray) -> None:
    """Every row once, with its largest similarity, by row."""
    order = np.lexsort((-similarity, rows))
    unique, first = np.unique(rows[order], return_index=True)
    write_columns(target, row=unique, similarity=similarity[order][first])


def _save(path: Path, values: np.ndarray) -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, values)
    write_atomic(path, buffer.getvalue())

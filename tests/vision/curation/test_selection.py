"""Retrieval and balanced sampling: nearest survivors, whole clusters, and a manifest within its bounds."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.vision.curation.cluster import hierarchical_kmeans
from tenfold.vision.curation.config import CurateConfig
from tenfold.vision.curation.curate import curate
from tenfold.vision.curation.duplicates import write_columns
from tenfold.vision.curation.embeddings import read_column, read_vectors
from tenfold.vision.curation.selection import (
    Choice,
    Clustering,
    Kept,
    Queries,
    Survivors,
    choose,
    cluster_pool,
    manifest_counts,
    read_tree,
    retrieve_clusters,
    retrieve_nearest,
)
from vision.curation_inputs import shard_of


def test_kmeans_over_workers_gives_the_tree_of_one_process(pool: Path, tmp_path: Path) -> None:
    config = CurateConfig(
        "pixels", pool, 50, tmp_path / "one", threshold=0.8, levels=(4,), iterations=1, shard_rows=256
    )
    spread = replace(config, out=tmp_path / "many", spread=0, workers=2)
    assert curate(config) == curate(spread)
    for name in ("tree.parquet", "centroids-1.npy"):
        one, many = (tmp_path / side / "cluster/tree/tree" / name for side in ("one", "many"))
        assert one.read_bytes() == many.read_bytes()


def survivors_of(folder: Path, lengths: tuple[int, ...] = (25, 15)) -> tuple[Survivors, np.ndarray]:
    """Two shards of random vectors, every fourth row of which is gone; and the vectors of all rows."""
    rng, starts = np.random.default_rng(0), np.cumsum([0, *lengths])
    paths = [
        shard_of(folder / f"{start}.parquet", rng.standard_normal((rows, 5)), int(start))
        for start, rows in zip(starts, lengths)
    ]
    write_columns(folder / "kept.parquet", kept=np.arange(starts[-1]) % 4 != 1)
    return Survivors(tuple(paths), folder / "kept.parquet", ""), np.concatenate([read_vectors(p) for p in paths])


def test_only_survivors_are_seen_under_their_own_numbers(tmp_path: Path) -> None:
    survivors, vectors = survivors_of(tmp_path)
    kept = Kept(survivors)
    assert np.array_equal(np.concatenate(list(kept)), vectors[kept.rows])
    assert kept.rows.tolist() == [row for row in range(40) if row % 4 != 1]


def test_a_tree_is_read_as_it_was_written(tmp_path: Path) -> None:
    survivors, _ = survivors_of(tmp_path)
    cluster_pool(Clustering((6, 2), 5, 0), survivors, tmp_path / "tree")
    tree = read_tree(tmp_path / "tree")
    kept = Kept(survivors)
    expected = hierarchical_kmeans(kept, (6, 2), 0, 5)
    for level in (1, 2):
        assert np.array_equal(tree.level(level), expected.level(level))
        np.testing.assert_array_equal(tree.centroids[level - 1], expected.centroids[level - 1])
    np.testing.assert_array_equal(tree.distance, expected.distance)
    assert read_column(tmp_path / "tree/tree.parquet", "row").tolist() == kept.rows.tolist()


def test_the_survivors_nearest_to_the_queries_are_retrieved_with_their_largest_similarity(tmp_path: Path) -> None:
    survivors, vectors = survivors_of(tmp_path)
    asked = read_vectors(shard_of(tmp_path / "query.parquet", np.random.default_rng(1).standard_normal((3, 5))))
    retrieve_nearest(Queries(survivors, (tmp_path / "query.parquet",), 4), tmp_path / "found.parquet")
    rows = Kept(survivors).rows
    alike = asked @ vectors[rows].T
    nearest = np.unique(np.argsort(-alike, axis=1)[:, :4])
    assert read_column(tmp_path / "found.parquet", "row").tolist() == rows[nearest].tolist()
    best = np.sort(alike, axis=1)[:, -4:]
    expected = [max(alike[q, i] for q in range(3) if alike[q, i] >= best[q, 0]) for i in nearest]
    np.testing.assert_allclose(read_column(tmp_path / "found.parquet", "similarity"), expected, atol=1e-6)


def test_clusters_with_many_queries_are_retrieved_and_others_are_not(tmp_path: Path) -> None:
    survivors, _ = survivors_of(tmp_path)
    cluster_pool(Clustering((5,), 10, 0), survivors, tmp_path / "tree")
    tree, rows = read_tree(tmp_path / "tree"), Kept(survivors).rows
    wanted, rare = np.argsort(-np.bincount(tree.level(1)))[:2]
    queries = np.concatenate([np.repeat(tree.centroids[0][[wanted]], 4, 0), np.repeat(tree.centroids[0][[rare]], 3, 0)])
    path = shard_of(tmp_path / "query.parquet", queries)
    made = Queries(survivors, (path,), 4, tree=tmp_path / "tree", min_queries=3)
    retrieve_clusters(made, tmp_path / "all.parquet")
    members = rows[tree.level(1) == wanted]
    assert read_column(tmp_path / "all.parquet", "row").tolist() == members.tolist()
    np.testing.assert_allclose(read_column(tmp_path / "all.parquet", "similarity"), 4 / 7, rtol=1e-6)
    retrieve_clusters(replace(made, per_cluster=2), tmp_path / "some.parquet")
    assert set(read_column(tmp_path / "some.parquet", "row")) < set(members)
    assert len(read_column(tmp_path / "some.parquet", "row")) == min(2, len(members))


@given(st.integers(1, 45), st.floats(0, 1), st.integers(1, 20), st.integers(1, 2))
@settings(max_examples=12, deadline=None)
def test_a_manifest_keeps_its_target_its_share_and_its_cap(
    target: int, share: float, cap: int, multiplier: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        survivors, _ = survivors_of(folder)
        kept = Kept(survivors).rows
        cluster_pool(Clustering((6, 2), 2, 0), survivors, folder / "tree")
        similar = np.linspace(0.9, 0.1, 12, dtype=np.float32)
        write_columns(folder / "found.parquet", row=kept[5:17], similarity=similar)
        choice = Choice(
            *(survivors, folder / "tree", ((folder / "found.parquet",),), target, share, cap),
            *("random", multiplier, 0),
        )
        choose(choice, folder / "manifest.parquet")
        rows, why, times = (read_column(folder / "manifest.parquet", field) for field in ("id", "why", "times"))
        retrieved = [int(row) for row, reason in zip(rows, why) if reason == "retrieved"]
        assert retrieved == kept[5:17][: min(cap, int(share * target))].tolist()  # the most similar of them
        assert times.sum() == min(target, len(retrieved) + multiplier * (len(kept) - len(retrieved)))
        assert times.max() <= multiplier
        assert set(rows.tolist()) <= set(kept.tolist())
        assert manifest_counts(folder / "manifest.parquet")["retrieved"] == len(retrieved)

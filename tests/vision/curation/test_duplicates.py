"""Near-duplicates: a chain leaves one image, a chain that touches a reference none, and shards do not matter."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tenfold.vision.curation.config import CurateConfig
from tenfold.vision.curation.curate import curate
from tenfold.vision.curation.duplicates import (
    Group,
    Merge,
    Pair,
    component_labels,
    drop_touched,
    exact_edges,
    group_pool,
    hashes,
    merge_edges,
    read_edges,
    touch_references,
    write_columns,
    write_edges,
)
from tenfold.vision.curation.embeddings import read_column, read_vectors
from vision.curation_inputs import angles, encoded, shard_of, write_pool


def test_a_chain_of_duplicates_leaves_one_though_its_ends_are_apart(tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "pool.parquet", angles(0, 40, 80, 200))  # cos 40 = 0.77, cos 80 = 0.17
    exact_edges(Pair(shard, shard, 0, 0, 64, 0.6, ""), tmp_path / "edges.parquet")
    group_pool(Group((tmp_path / "edges.parquet",), (shard,), 0.6, ""), tmp_path / "groups.parquet")
    assert read_column(tmp_path / "groups.parquet", "component").tolist() == [0, 0, 0, 3]
    assert read_column(tmp_path / "groups.parquet", "kept").tolist() == [True, False, False, True]


def test_a_chain_that_touches_a_reference_leaves_nothing(tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "pool.parquet", angles(0, 40, 80, 200))
    other = shard_of(tmp_path / "reference.parquet", angles(110), first=50)  # near the chain's last image alone
    edges, touching, groups = (tmp_path / f"{name}.parquet" for name in ("edges", "touching", "groups"))
    exact_edges(Pair(shard, shard, 0, 0, 64, 0.6, ""), edges)
    touch_references(Pair(shard, other, 0, 0, 1, 0.6, ""), touching)
    drop_touched(Group((edges,), (shard,), 0.6, "", (touching,)), groups)
    assert read_column(groups, "touched").tolist() == [False, False, True, False]
    assert read_column(groups, "kept").tolist() == [False, False, False, True]


def test_the_image_with_most_pixels_is_the_one_that_stays(photographs: list[np.ndarray], tmp_path: Path) -> None:
    image = photographs[0]
    small = np.array(Image.fromarray(image).resize((image.shape[1] // 2, image.shape[0] // 2)))
    pool = write_pool(tmp_path / "pool.parquet", [encoded(i) for i in (small, image, photographs[1])])
    curate(CurateConfig("pixels", pool, 10, tmp_path / "out", threshold=0.8))
    assert pq.read_table(tmp_path / "out/manifest.parquet")["id"].to_pylist() == [1, 2]


def random_shards(folder: Path, lengths: tuple[int, ...], seed: int = 0) -> list[Path]:
    rng, starts = np.random.default_rng(seed), np.cumsum([0, *lengths])
    vectors = rng.standard_normal((starts[-1], 6))
    return [
        shard_of(folder / f"{lengths}-{start}.parquet", vectors[start : start + rows], int(start))
        for start, rows in zip(starts, lengths)
    ]


@pytest.mark.parametrize("lengths", [(30,), (7, 23), (10, 1, 19)])
def test_edges_of_any_shards_are_the_pairs_of_a_plain_search(lengths: tuple[int, ...], tmp_path: Path) -> None:
    floor, k = 0.4, 4
    shards = random_shards(tmp_path, lengths)
    starts = np.cumsum([0, *lengths])
    edges = []
    for i, left in enumerate(shards):
        for j in range(i, len(shards)):
            pair = Pair(left, shards[j], int(starts[i]), int(starts[j]), k, floor, "")
            edges.append(tmp_path / pair.name)
            exact_edges(pair, edges[-1])
    found = set()
    for start, rows in zip(starts, lengths):
        merge_edges(Merge(tuple(edges), int(start), rows, k, ""), tmp_path / "merged.parquet")
        query, neighbor, _ = read_edges(tmp_path / "merged.parquet")
        found |= set(zip(query.tolist(), neighbor.tolist()))
    vectors = np.concatenate([read_vectors(path) for path in shards])
    alike = vectors @ vectors.T
    np.fill_diagonal(alike, -1)
    best = np.argsort(-alike, axis=1)[:, :k]
    assert found == {(i, int(j)) for i, row in enumerate(best) for j in row if alike[i, j] > floor}


def test_rows_of_the_same_pixels_are_joined_without_an_edge(tmp_path: Path) -> None:
    write_edges(tmp_path / "none.parquet", (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)))
    labels = component_labels(Group((tmp_path / "none.parquet",), (), 0.6, ""), np.array([5, 7, 5, 8, 7], np.uint64))
    assert labels.tolist() == [0, 1, 0, 3, 1]


def test_the_mark_of_an_image_is_the_first_eight_bytes_of_its_digest(tmp_path: Path) -> None:
    digests = [hashlib.sha256(bytes([n])).hexdigest() for n in range(3)]
    write_columns(tmp_path / "shard.parquet", sha256=digests)
    assert hashes([tmp_path / "shard.parquet"]).tolist() == [int.from_bytes(bytes.fromhex(d)[:8]) for d in digests]

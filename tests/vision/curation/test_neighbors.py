"""Exact neighbours against a plain search, components against a walk of the graph, and FAISS's proposals against both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.data.sources import open_source
from tenfold.errors import DataError, UsageError
from tenfold.vision.curation import neighbors
from tenfold.vision.curation.calibrate import copies_of
from tenfold.vision.curation.embeddings import Encoder
from tenfold.vision.curation.neighbors import (
    DisjointSet,
    Neighbors,
    TopK,
    approximate_pair,
    components,
    cosine_neighbors,
    fill_index,
    pair_recall,
    train_index,
)


def unit_vectors(rows: int, width: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def plain_search(vectors: np.ndarray, k: int, floor: float = -np.inf) -> tuple[np.ndarray, np.ndarray]:
    """Every product in float64, sorted by similarity, then by index."""
    similarity = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    np.fill_diagonal(similarity, -np.inf)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(similarity, order, axis=1)
    return np.where(best > floor, order, -1), best


@pytest.fixture(scope="module")
def described(test_data: Path) -> np.ndarray:
    """Descriptors of 600 photographs, and of three copies of the first 100."""
    source = open_source(test_data / "vision/imagenette160_val.parquet")
    images = [source[index].image for index in range(0, 1800, 3)]
    rng = np.random.default_rng(0)
    return Encoder()([*images, *(copy for image in images[:100] for copy in copies_of(image, rng))])


@pytest.mark.parametrize("floor", [-np.inf, 0.1])
@pytest.mark.parametrize("split", [[50, 300, 7, 143], [500]])
def test_neighbors_are_those_of_a_plain_search_for_any_shards(
    split: list[int], floor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "BLOCK", 64)  # many blocks, and a last one that is not full
    monkeypatch.setattr(neighbors, "SLACK", 5)
    vectors = unit_vectors(500, 24)
    found = cosine_neighbors(np.split(vectors, np.cumsum(split)[:-1]), k=9, floor=floor)
    index, similarity = plain_search(vectors, 9, floor)
    assert np.array_equal(found.index, index)
    held = index >= 0
    assert np.abs(found.similarity[held] - similarity[held]).max() < 1e-6
    assert np.isneginf(found.similarity[~held]).all()


def test_negative_similarities_are_ordered_too() -> None:
    vectors = np.array([[1, 0], [-0.6, 0.8], [-0.8, 0.6], [-1, 0]], np.float32)
    found = cosine_neighbors([vectors], k=3)
    assert found.index[0].tolist() == [1, 2, 3]
    assert found.similarity[0].tolist() == pytest.approx([-0.6, -0.8, -1.0])


def test_equal_images_more_than_fit_go_to_the_lower_index() -> None:
    vectors = np.repeat(unit_vectors(1, 16), 400, axis=0)
    found = cosine_neighbors([vectors[:150], vectors[150:]], k=5)
    assert found.index[0].tolist() == [1, 2, 3, 4, 5]
    assert found.index[399].tolist() == [0, 1, 2, 3, 4]


def test_the_order_of_offers_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    row, index = rng.integers(0, 20, 4000), np.arange(4000)
    similarity = rng.random(4000).astype(np.float32).round(2)  # many ties
    results = []
    for order in (np.arange(4000), rng.permutation(4000)):
        best = TopK(20, 7)
        for part in np.array_split(order, 13):
            best.add(row[part], index[part], similarity[part])
        results.append(best.result())
    assert np.array_equal(results[0].index, results[1].index)
    assert np.array_equal(results[0].similarity, results[1].similarity)


def test_k_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="k = 0"):
        cosine_neighbors([unit_vectors(3, 4)], k=0)


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=80))
@settings(max_examples=60, deadline=None)
def test_components_are_those_of_a_walk_of_the_graph(size: int, edges: list[tuple[int, int]]) -> None:
    edges = [(a % size, b % size) for a, b in edges]
    expected = list(range(size))
    for _ in range(size):  # the smallest label spreads along edges
        for a, b in edges:
            expected[a] = expected[b] = min(expected[a], expected[b])
    left, right = (np.array([edge[side] for edge in edges], np.int64) for side in (0, 1))
    assert components(size, left, right).tolist() == expected


def test_a_long_chain_is_one_component_with_short_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "CHUNK", 100)
    joined = DisjointSet(3000)
    order = np.random.default_rng(0).permutation(2999)
    joined.union(order, order + 1)
    assert (joined.labels() == 0).all()
    assert joined.parent.min() == -3000
    assert joined.parent.nbytes == 8 * 3000


def test_ivf_finds_the_pairs_of_exact_search_with_the_stored_similarities(
    described: np.ndarray, tmp_path: Path
) -> None:
    shards, floor = [described[:500], described[500:]], 0.6
    exact = cosine_neighbors(shards, k=64, floor=floor)
    train_index(described, tmp_path / "empty.faiss")
    starts, parts = [0, 500], []
    for number, shard in enumerate(shards):
        fill_index(tmp_path / "empty.faiss", shard, tmp_path / f"{number}.faiss")
    for i, queries in enumerate(shards):
        best = TopK(len(queries), 64, floor)
        for j, stored in enumerate(shards):
            approximate_pair(queries, tmp_path / f"{j}.faiss", stored, best, starts[j], i == j)
        parts.append(best.result())
    found = Neighbors(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("index", "similarity")))
    assert len(exact.edges()[0]) > 600  # the copies
    assert pair_recall(found, exact) >= 0.99
    assert pair_recall(exact, found) == 1.0  # nothing above the floor that is not there
    first, second = exact.edges(), found.edges()
    scores = {(a, b): s for a, b, s in zip(*first)}
    assert max(abs(scores[a, b] - s) for a, b, s in zip(*second)) < 1e-5


def test_too_few_vectors_for_an_index_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few"):
        train_index(unit_vectors(20, 8), tmp_path / "x.faiss")
    assert not list(tmp_path.iterdir())


def test_pair_recall_counts_unordered_pairs_once() -> None:
    exact = cosine_neighbors([unit_vectors(30, 4)], k=3)
    cut = Neighbors(exact.index[:, :1], exact.similarity[:, :1])
    assert pair_recall(exact, exact) == 1.0
    assert 0.2 < pair_recall(cut, exact) < 1.0

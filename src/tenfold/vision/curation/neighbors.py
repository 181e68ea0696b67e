"""Nearest neighbours by cosine, and the components that they form: what finds duplicates among images.

    found = cosine_neighbors([vectors], k=64, floor=0.6)      index and similarity, both (N, k), best first
    components(N, *found.edges()[:2])                         (N,) the smallest member of each row's component

Exact search is a matrix product over pairs of shards i <= j: similarity is symmetric, so each product is used for the
rows of i and, turned, for the rows of j. That is half of the arithmetic of a plain search (`tenfold bench dedup`). Ties
go to the lower index, so the answer does not depend on the order of the work. `train_index` and `approximate_pair` are
the way past what exact search can pay: FAISS IVF-PQ proposes, the stored vectors decide.

DINOv2, arXiv 2304.07193, appendix A: k = 64, components by a disjoint set. numpy only, because worker processes import
this file; vectors have unit length (see embeddings.py).

    N M rows   D width   k neighbours kept
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from tenfold.config import require
from tenfold.errors import DataError, MissingExtra

BLOCK = 1024  # rows of one product: 4 MB of similarities, which a core's cache nearly holds
SLACK = 64  # places of a row beyond its k
EMPTY = np.iinfo(np.int64).max
LOW = np.int64(0xFFFF_FFFF)  # the half of a key that holds the index: at most 4.3 billion images
CHUNK = 65_536  # edges that the disjoint set looks at together
SPARE = 2  # candidates that the approximate index proposes for every neighbour that is kept
TRAIN_ROWS = 39  # rows of the training sample per IVF cell, FAISS's own minimum


@dataclass(frozen=True)
class Neighbors:
    """`index` -1 and `similarity` -inf where a row has fewer than k neighbours above `floor`."""

    index: Int64[np.ndarray, "n k"]
    similarity: Float32[np.ndarray, "n k"]

    def edges(self, first: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row (counted from `first`), neighbour and similarity of everything found, row by row, best first."""
        row, place = np.nonzero(self.index >= 0)
        return row + first, self.index[row, place], self.similarity[row, place]


class TopK:
    """The k largest similarities of each row seen so far, strictly above `floor`.

    Similarity and index are one 64-bit key, the smaller the better: the float's bits made sortable, then the index. No two
    keys are equal, so the k best are the same for any order of offers. A row has room for `SLACK` more than k, and only
    when that is full are its k best picked out.
    """

    def __init__(self, rows: int, k: int, floor: float = -np.inf) -> None:
        self.k = k
        self._keys = np.full((rows, k + SLACK), EMPTY)
        self._filled = np.zeros(rows, np.int64)
        lowest = np.nextafter(np.float32(floor), np.float32(np.inf)) if np.isfinite(floor) else np.float32(-np.inf)
        self._bar = np.full(rows, lowest, np.float32)  # what a similarity must reach to be among a row's k
        self._mask = np.empty(BLOCK * BLOCK, bool)

    def offer(self, similarity: np.ndarray, row: int, column: int) -> None:
        """Takes a block: rows from `row` on, neighbours with indices from `column` on."""
        rows = slice(row, row + similarity.shape[0])
        self._raise_bar(similarity, rows, axis=1)
        flat = self._reaching(similarity, self._bar[rows, None])
        r = flat // similarity.shape[1]  # numpy divides by one number with SIMD, and divmod does not
        self._keep(rows, r, _keys(similarity.ravel()[flat], flat - r * similarity.shape[1] + column))

    def offer_turned(self, similarity: np.ndarray, row: int, column: int) -> None:
        """The same block read the other way: its columns are rows from `row` on, its rows neighbours from `column` on."""
        rows = slice(row, row + similarity.shape[1])
        self._raise_bar(similarity, rows, axis=0)
        flat = self._reaching(similarity, self._bar[None, rows])
        c = flat // similarity.shape[1]
        r = flat - c * similarity.shape[1]
        order = np.argsort(r.astype(np.uint16), kind="stable")  # 16 bits sort by radix
        self._keep(rows, r[order], _keys(similarity.ravel()[flat], c + column)[order])

    def add(self, r: np.ndarray, index: np.ndarray, similarity: np.ndarray) -> None:
        """Takes loose candidates: row, neighbour, similarity."""
        kept = np.flatnonzero(similarity >= self._bar[r])
        kept = kept[np.argsort(r[kept], kind="stable")]
        self._keep(slice(0, len(self._keys)), r[kept], _keys(similarity[kept].astype(np.float32), index[kept]))

    def result(self) -> Neighbors:
        self._keys.partition(self.k - 1, axis=1)  # what lies beyond k is not sorted
        keys = np.sort(self._keys[:, : self.k], axis=1)
        found = keys != EMPTY
        index = np.where(found, keys & LOW, -1)
        return Neighbors(index, np.where(found, _similarity(keys), np.float32(-np.inf)))

    def _reaching(self, similarity: np.ndarray, bar: np.ndarray) -> np.ndarray:
        """Flat places of what reaches the bar. The mask is kept: new pages for each block cost as much as the comparison."""
        mask = self._mask[: similarity.size].reshape(similarity.shape)
        return np.flatnonzero(np.greater_equal(similarity, bar, out=mask))

    def _raise_bar(self, similarity: np.ndarray, rows: slice, axis: int) -> None:
        """A row that has nothing yet need not take a whole block. The k-th largest of maxima over disjoint groups is not
        above the k-th largest of all, so it is a bar; maxima of pairs are cheaper than a selection among all."""
        if similarity.shape[axis] <= self.k or not np.isneginf(self._bar[rows]).any():
            return
        maxima = similarity
        while maxima.shape[axis] % 2 == 0 and maxima.shape[axis] >= 8 * self.k:
            maxima = np.maximum(*np.split(maxima, 2, axis=axis))
        place = maxima.shape[axis] - self.k
        kth = np.take(np.partition(maxima, place, axis=axis), place, axis=axis)
        self._bar[rows] = np.maximum(self._bar[rows], kth)

    def _keep(self, rows: slice, r: np.ndarray, keys: np.ndarray) -> None:
        """Puts keys into their rows; `r` is sorted and counts from the start of `rows`."""
        if len(r) == 0:
            return
        held, filled = self._keys[rows], self._filled[rows]
        counts = np.bincount(r, minlength=len(held))
        place = filled[r] + np.arange(len(r)) - np.repeat(np.cumsum(counts) - counts, counts)
        filled += counts
        fullest = int(filled.max())
        if fullest <= held.shape[1]:
            held[r, place] = keys
            return
        every = np.full((len(held), fullest), EMPTY)
        every[:, : held.shape[1]] = held
        every[r, place] = keys
        every.partition(self.k - 1, axis=1)
        held[:, : self.k], held[:, self.k :] = every[:, : self.k], EMPTY
        np.minimum(filled, self.k, out=filled)
        worst, full = every[:, self.k - 1], filled == self.k
        self._bar[rows][full] = np.maximum(self._bar[rows][full], _similarity(worst[full]))


def cosine_neighbors(shards: Sequence[np.ndarray], k: int = 64, floor: float = -np.inf) -> Neighbors:
    """The k most similar other rows of every row, above `floor`, exactly: float32 products, in one thread per caller.

    shards: unit vectors (M, D), numbered through. Only two are held at a time when the sequence loads them on access;
    the result takes 8 bytes for each of N x k.
    """
    require(k >= 1, "k", k, "a whole number >= 1")
    starts = np.cumsum([0, *(len(shard) for shard in shards)])
    best = [TopK(len(shard), k, floor) for shard in shards]
    for i in range(len(shards)):  # a shard with itself first: afterwards every row has a bar
        within(shards[i], best[i], int(starts[i]))
    for i in range(len(shards)):
        for j in range(i + 1, len(shards)):
            across(shards[i], shards[j], best[i], best[j], int(starts[i]), int(starts[j]))
    parts = [top.result() for top in best]
    return Neighbors(np.concatenate([p.index for p in parts]), np.concatenate([p.similarity for p in parts]))


def within(vectors: Float32[np.ndarray, "n d"], best: TopK, first: int) -> None:
    """Offers a shard's rows to each other; a row is not its own neighbour."""
    product, half = Product(), BLOCK // 2

    def cross(a: int, b: int, size: int) -> None:
        block = product(vectors[a : a + size], vectors[b : b + size])
        best.offer(block, a, first + b)
        best.offer_turned(block, b, first + a)

    for a in range(0, len(vectors), half):  # half blocks, because those on the diagonal are symmetric in themselves
        block = product(vectors[a : a + half], vectors[a : a + half])
        np.fill_diagonal(block, -np.inf)
        best.offer(block, a, first + a)
    for a in range(0, len(vectors) - half, BLOCK):
        cross(a, a + half, half)
    for a in range(0, len(vectors), BLOCK):
        for b in range(a + BLOCK, len(vectors), BLOCK):
            cross(a, b, BLOCK)


def across(
    left: Float32[np.ndarray, "n d"],
    right: Float32[np.ndarray, "m d"],
    best_left: TopK,
    best_right: TopK | None,
    first_left: int,
    first_right: int,
) -> None:
    """Offers the rows of two shards to each other; with `best_right` None, only those of `right` to `left`."""
    product = Product()
    for a in range(0, len(left), BLOCK):
        for b in range(0, len(right), BLOCK):
            block = product(left[a : a + BLOCK], right[b : b + BLOCK])
            best_left.offer(block, a, first_right + b)
            if best_right is not None:
                best_right.offer_turned(block, b, first_left + a)


class Product:
    """Similarities of two blocks of rows, in memory that is used again by the next call."""

    def __init__(self) -> None:
        self._memory = np.empty(BLOCK * BLOCK, np.float32)

    def __call__(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        out = self._memory[: len(left) * len(right)].reshape(len(left), len(right))
        return np.matmul(left, right.T, out=out)


class DisjointSet:
    """Union by size with path halving, in one array: a root holds minus the size of its set, others their parent.

    8 bytes per image: 10 GB at 1.3 billion.
    """

    def __init__(self, size: int) -> None:
        self.parent = np.full(size, -1, np.int64)

    def find(self, nodes: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The root of every node; paths become half as long on the way."""
        nodes = nodes.copy()
        while True:
            above = self.parent[nodes]
            moving = np.flatnonzero(above >= 0)
            if len(moving) == 0:
                return nodes
            grand = self.parent[above[moving]]
            step = np.where(grand >= 0, grand, above[moving])
            self.parent[nodes[moving]] = step
            nodes[moving] = step

    def union(self, left: Int64[np.ndarray, " e"], right: Int64[np.ndarray, " e"]) -> None:
        """Joins the two ends of every edge."""
        for start in range(0, len(left), CHUNK):
            a, b = self.find(left[start : start + CHUNK]), self.find(right[start : start + CHUNK])
            apart = a != b  # most edges of a dense component say nothing new
            for pair in np.unique(np.stack([a[apart], b[apart]], axis=1), axis=0):
                first, second = self.find(pair)
                if first == second:
                    continue
                if self.parent[first] > self.parent[second]:
                    first, second = second, first
                self.parent[first] += self.parent[second]
                self.parent[second] = first

    def labels(self) -> Int64[np.ndarray, " n"]:
        """The smallest member of each node's set: the same for any order of unions."""
        nodes = np.arange(len(self.parent))
        root = self.find(nodes)
        smallest = np.full(len(nodes), len(nodes))
        np.minimum.at(smallest, root, nodes)
        return smallest[root]


def components(size: int, left: np.ndarray, right: np.ndarray) -> Int64[np.ndarray, " size"]:
    """Connected components of the edges: the smallest member of each node's."""
    joined = DisjointSet(size)
    joined.union(left, right)
    return joined.labels()


def pair_recall(found: Neighbors, exact: Neighbors) -> float:
    """Share of the unordered pairs in `exact` that `found` has too; 1 when there are none."""
    pairs = []
    for neighbors in (found, exact):
        a, b, _ = neighbors.edges()
        pairs.append(np.unique(np.stack([np.minimum(a, b), np.maximum(a, b)], axis=1), axis=0))
    if len(pairs[1]) == 0:
        return 1.0
    stacked = np.concatenate(pairs)
    common = len(stacked) - len(np.unique(stacked, axis=0))
    return common / len(pairs[1])


def train_index(sample: Float32[np.ndarray, "n d"], path: Path) -> None:
    """Writes an empty FAISS IVF-PQ index trained on a sample of the pool. The same bytes for the same sample."""
    faiss = _faiss()
    rows, width = sample.shape
    cells = max(1, min(int(4 * rows**0.5), rows // TRAIN_ROWS))
    codes = max(m for m in (1, 2, 4, 8, 16, 32, 64, 96) if width % m == 0 and m <= max(1, width // 4))
    bits = max(1, min(8, int(np.log2(max(2, rows // TRAIN_ROWS)))))
    if rows < TRAIN_ROWS * 2:
        raise DataError(f"{rows} vectors are too few to train an IVF-PQ index: use exact neighbours.")
    index = faiss.index_factory(width, f"IVF{cells},PQ{codes}x{bits}", faiss.METRIC_INNER_PRODUCT)
    index.train(sample)
    faiss.write_index(index, str(path))


def fill_index(trained: Path, vectors: Float32[np.ndarray, "n d"], path: Path) -> None:
    """Writes the trained index with one shard's vectors in it."""
    faiss = _faiss()
    index = faiss.read_index(str(trained))
    index.add(vectors)
    faiss.write_index(index, str(path))


def approximate_pair(
    queries: Float32[np.ndarray, "n d"],
    index: Path,
    stored: Float32[np.ndarray, "m d"],
    best: TopK,
    first: int,
    itself: bool,
    probes: int = 32,
) -> None:
    """Offers `best` what the index of one shard proposes for each query, scored again by that shard's stored vectors.

    `first` is the number of the shard's first vector; with `itself`, queries and shard are the same rows.
    """
    searched: Any = _faiss().read_index(str(index))
    searched.nprobe = min(probes, searched.nlist)
    wanted = min(len(stored), SPARE * best.k + itself)
    for start in range(0, len(queries), BLOCK):
        rows = queries[start : start + BLOCK]
        _, proposed = searched.search(rows, wanted)
        r, place = np.nonzero(proposed >= 0)
        local = proposed[r, place]
        if itself:
            other = local != r + start
            r, local = r[other], local[other]
        similarity = np.einsum("nd,nd->n", rows[r], stored[local])
        best.add(r + start, local + first, similarity)


def _keys(similarity: np.ndarray, index: np.ndarray) -> np.ndarray:
    bits = similarity.view(np.int32)
    bits = ~(bits ^ ((bits >> 31) & np.int32(0x7FFF_FFFF)))  # negative floats sort backwards by their bits
    return (bits.astype(np.int64) << 32) | index


def _similarity(keys: np.ndarray) -> np.ndarray:
    bits = ~(keys >> 32).astype(np.int32)
    return (bits ^ ((bits >> 31) & np.int32(0x7FFF_FFFF))).view(np.float32)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra("faiss-cpu", "vision", "it searches approximately") from error
    return faiss

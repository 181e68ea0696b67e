"""`tenfold bench dedup`: exact nearest neighbours beside FAISS's flat index, one thread each, in CPU time.

Both sides find the 64 nearest others of every one of N random unit vectors, D = 512: the hardest input for a search that
skips what is below a bar, because no vector is nearer than the rest. A duplicate search has a lowest similarity and is
faster. The limit is the matrix product alone, at the rate measured in the same rounds: tenfold needs half of one, FAISS
a whole one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from statistics import median
from time import process_time
from typing import Any

import numpy as np

from tenfold.errors import MissingExtra
from tenfold.shards.attempt import thread_environment
from tenfold.vision.curation.neighbors import BLOCK, Neighbors, Product, cosine_neighbors

SIZES, WIDTH, K = (16_384, 32_768), 512, 64
ROUNDS = 3
PRODUCTS = 16  # blocks in one measurement of the product's rate
PEER = "FAISS IndexFlatIP"
MARGIN = 1e-6  # similarities nearer than this may be ordered either way: the two sides add in another order


def run() -> dict[str, Any]:
    """Measures in a process of its own: the libraries read their number of threads when they are imported."""
    _faiss()
    environment = {**os.environ, **thread_environment(1), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    words = [sys.executable, "-c", "import json; from tenfold.bench.dedup import measure; print(json.dumps(measure()))"]
    result = subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(result.stdout)


def measure() -> dict[str, Any]:
    """CPU seconds of both sides at each size, the ratio, the limit, and whether the pairs are the same."""
    faiss = _faiss()
    faiss.omp_set_num_threads(1)
    rows, notes = [], []
    for size in SIZES:
        more, note = _measure(faiss, size)
        rows += more
        notes += note
    return {
        "title": f"exact {K} nearest of unit vectors, width {WIDTH}, one thread, CPU time",
        "rows": rows,
        "notes": notes,
    }


def _measure(faiss: Any, size: int) -> tuple[list[dict[str, Any]], list[str]]:
    vectors = np.random.default_rng(0).standard_normal((size, WIDTH), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = faiss.IndexFlatIP(WIDTH)
    index.add(vectors)
    product = Product()
    found: dict[str, Any] = {}
    sides: dict[str, Callable[[], object]] = {
        "tenfold": lambda: found.update(tenfold=cosine_neighbors([vectors], K)),
        PEER: lambda: found.update(faiss=index.search(vectors, K + 1)),
        "product": lambda: [product(vectors[:BLOCK], vectors[BLOCK : 2 * BLOCK]) for _ in range(PRODUCTS)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(ROUNDS + 1):
        for name, work in sides.items():
            start = process_time()
            work()
            if turn:  # the first round warms up
                seconds[name].append(process_time() - start)
    rate = [PRODUCTS * 2 * BLOCK * BLOCK * WIDTH / taken for taken in seconds.pop("product")]
    whole = 2 * size * size * WIDTH / median(rate)
    shares = sorted(o / p for o, p in zip(seconds["tenfold"], seconds[PEER]))
    rows = [
        {
            "vectors": f"{size:,}",
            "side": name,
            "CPU s": round(median(taken), 2),
            "spread": f"{min(taken):.2f} to {max(taken):.2f}",
            "limit, product alone": round(whole if name == PEER else whole / 2, 2),
            "tenfold's share of it": f"{median(shares):.2f} ({shares[0]:.2f} to {shares[-1]:.2f})"
            if name == PEER
            else "",
        }
        for name, taken in seconds.items()
    ]
    product_note = f"product: {median(rate) / 1e9:.0f} GFLOP/s in blocks of {BLOCK}, {ROUNDS} rounds measured in turns"
    return rows, [f"{size:,}: {same_pairs(found['tenfold'], *found['faiss'])}; {product_note}"]


def same_pairs(ours: Neighbors, similarity: np.ndarray, index: np.ndarray) -> str:
    """Compares the sets of neighbours row by row; FAISS returns each row among its own neighbours."""
    rows = np.arange(len(index))[:, None]
    different = 0
    for row, own, theirs in zip(rows[:, 0], ours.index, index):
        apart = np.setxor1d(own, theirs[theirs != row][:K])
        bar = ours.similarity[row, -1]
        near = [s for i, s in zip(theirs, similarity[row]) if i in apart]
        different += bool(len(apart)) and any(abs(s - bar) > MARGIN for s in near)
    same = len(index) - different
    return f"the same {K} neighbours in {same:,} of {len(index):,} rows (ties within {MARGIN} may go either way)"


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra("faiss-cpu", "vision", "it is the other side of this comparison") from error
    return faiss

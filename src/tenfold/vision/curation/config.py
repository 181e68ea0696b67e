"""The configuration of a curation, which is also the flags of `tenfold vision curate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from tenfold.config import require


@dataclass(frozen=True)
class CurateConfig:
    """What is curated and how; the flags of `tenfold vision curate`."""

    weights: tyro.conf.Positional[str]  # weights or run folder for clusters and retrieval, or `pixels`
    pool: Path  # images to choose from
    target: int  # rows of the manifest
    out: Path  # folder of results and of all stages
    reference: tuple[Path, ...] = ()  # sets that must not leak into the result (tests, benchmarks)
    query: tuple[Path, ...] = ()  # sets that the result should have more of; the references when none is named
    copies: str = "pixels"  # encoder for duplicates: `pixels`, or weights (SSCD is what the papers used)
    calibrate: bool = False  # measure on planted copies which similarity is a duplicate
    threshold: float | None = None  # cosine above which two images are duplicates (0.6 for SSCD)
    reference_threshold: float | None = None  # the same against references (0.45 for SSCD); default --threshold
    size: int = 224  # side in pixels at which weights look at an image
    neighbors: Literal["exact", "ivf"] = "exact"  # ivf: FAISS proposes, for pools that exact search cannot pay
    k: int = 64  # neighbours kept per image
    levels: tuple[int, ...] = ()  # clusters per level, falling; default 20 images each, then ten to one
    iterations: int = 50  # of k-means at most, at each level
    strategy: Literal["random", "closest"] = "random"  # which members of a cluster are sampled
    multiplier: int = 1  # how often an image may be sampled
    retrieve: Literal["nearest", "clusters", "none"] = "nearest"  # neighbours of queries, or clusters with many of them
    retrieve_k: int = 4  # neighbours per query image
    retrieve_share: float = 0.5  # largest share of the target that retrieval may take
    retrieve_cap: int = 1_000_000  # images at most that one query set retrieves
    retrieve_level: int = 1  # level of the clusters that are retrieved whole, 1 being the finest
    per_cluster: int = 10_000  # images at most of a cluster that is retrieved
    min_queries: int = 3  # a cluster is retrieved when more query images than these are in it
    executor: Literal["local", "ray"] = "local"  # ray: the cluster at RAY_ADDRESS, or one on this machine
    workers: int = 1  # processes, one thread each
    shard_rows: int = 4096  # images per shard
    spread: int = 1_000_000  # images from which on k-means is spread over the workers
    error_rate: float = 0.01  # share of unreadable images above which the run stops
    seed: int = 0  # of every random choice

    def __post_init__(self) -> None:
        whole = ("target", "k", "iterations", "multiplier", "retrieve_k", "retrieve_level", "per_cluster", "shard_rows")
        for name in (*whole, "workers", "retrieve_cap"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number >= 1")
        for name in ("threshold", "reference_threshold"):
            value = getattr(self, name)
            require(value is None or -1 <= value < 1, name, value, "a cosine in [-1, 1)")
        for name in ("retrieve_share", "error_rate"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a share in [0, 1]")
        for name in ("seed", "spread", "min_queries"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "a whole number >= 0")

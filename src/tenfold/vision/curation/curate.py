"""Data curation, `tenfold vision curate`: from a pool of images to a training set without copies or leaks, in balance.

    curate(CurateConfig("pixels", Path("photos"), 10_000, Path("curated"), threshold=0.8))      -> report

    pool ─> embed ─> dedup ─> relative-dedup ─> cluster ─┬─> sample ──┬─> manifest.parquet, report.json, contact.png
    references ─> embed ──────────┘   queries ─> embed ──┴─> retrieve ┘

Each stage is a job of `map_shards` in a folder of its own below `out`: run the same command again after any stop and it
continues, with the bytes that it would have had. Every item carries the digest of what made its inputs, so a pool that grew
redoes what depends on it. DINOv2 (arXiv 2304.07193, section 3 and appendix A), DINOv3 (arXiv 2508.10104, section 3.1).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.data.atomic import aside, write_atomic
from tenfold.data.lock import held
from tenfold.data.sources import NAMED, Source, content_id, open_source, too_many_unreadable
from tenfold.errors import DataError, UsageError
from tenfold.shards.executor import map_function, map_shards
from tenfold.shards.journal import NAME as JOURNAL
from tenfold.vision.curation import calibrate as calibration
from tenfold.vision.curation import duplicates, selection
from tenfold.vision.curation.config import CurateConfig
from tenfold.vision.curation.embeddings import (
    Encoder,
    Rows,
    Vectors,
    embed_rows,
    former_rows,
    read_column,
    unreadable_of,
)
from tenfold.vision.curation.neighbors import BLOCK

CALIBRATION, MANIFEST, REPORT = "calibration.json", "manifest.parquet", "report.json"
PLANT_ROWS = 128  # images whose copies make one shard


def curate(config: CurateConfig, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Runs every stage that is not done and returns the report. `say` gets lines for people while it works.

    Raises UsageError (exit 2) without a threshold, DataError (3) for an empty or unreadable pool.
    """
    recorded = config.out / CALIBRATION
    if not config.calibrate and config.threshold is None and not recorded.exists():
        raise UsageError(
            f"nothing says which similarity of {config.copies!r} is a duplicate, so the dedup stage cannot run. Add "
            f"--calibrate to measure it on planted copies, or --threshold NUMBER (0.6 is right for SSCD and nothing else)."
        )
    sources = {path: open_source(path.absolute()) for path in (config.pool, *config.reference, *config.query)}
    for source in sources.values():
        if note := getattr(source, "skipped", ""):
            say(f"tenfold: {note}")
    stages = _Curation(config, sources, say)
    with held(config.out / ".lock", "folder of a curation"):
        return stages.run()


def default_levels(images: int) -> tuple[int, ...]:
    """About 20 images per finest cluster, then ten clusters to one, as long as ten are left; at most five levels."""
    levels = [max(1, images // 20)]
    while levels[-1] // 10 >= 10 and len(levels) < 5:
        levels.append(levels[-1] // 10)
    return tuple(levels)


class _Curation:
    """One run: the stages in their order, the digest of each, and what the report says of them."""

    def __init__(self, config: CurateConfig, sources: dict[Path, Source], say: Callable[[str], None]) -> None:
        self.config, self.sources, self.say = config, sources, say
        self.sizes = {path: len(source) for path, source in sources.items()}
        self.copies, self.features = Encoder.of(config.copies, config.size), Encoder.of(config.weights, config.size)
        self.report: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        config = self.config
        copies = self._embed("copies", self.copies, config.pool, "pool")
        self._count_unreadable(copies)
        same = self.copies == self.features
        features = copies if same else self._embed("features", self.features, config.pool, "pool")
        edges, thresholds = self._neighbors(copies)
        survivors = self._dedup(copies, edges, thresholds)
        survivors = self._relative_dedup(copies, edges, thresholds, survivors)
        left = selection.Survivors(tuple(features), survivors, self._digest(survivors.parent, *features))
        remaining = int(read_column(survivors, "kept").sum())
        if not remaining:
            raise DataError(f"{config.pool}: every image is a copy of a reference image, so nothing is left to choose.")
        tree = self._cluster(left, remaining)
        retrieved = self._retrieve(left, tree)
        manifest = self._manifest(left, tree, retrieved)
        self.report["manifest"] = {"rows": sum(selection.manifest_counts(manifest).values())}
        self.report["manifest"] |= selection.manifest_counts(manifest)
        with aside(config.out / MANIFEST) as temporary:
            temporary.write_bytes(manifest.read_bytes())
        write_atomic(config.out / REPORT, (json.dumps(self.report, indent=2) + "\n").encode())
        return self.report

    def _map(
        self,
        folder: str,
        function: Any,
        items: Sequence[Any],
        settings: Any,
        name: Callable[[Any], str],
        former_item: Callable[[Any, Path], Any] | None = None,
    ) -> list[Path]:
        """A stage, or part of one."""
        out = self.config.out / folder
        place: Any = {"executor": self.config.executor, "workers": self.config.workers, "former_item": former_item}
        return list(map_shards(function, items, out, settings=settings, name=name, label=folder, **place).paths)

    def _digest(self, *paths: Path) -> str:
        """Of what made these files: the SHA-256 sums in their journals, which do not name the folder they lie in."""
        total = hashlib.sha256()
        for folder in dict.fromkeys(path if path.is_dir() else path.parent for path in paths):
            for line in (folder / JOURNAL).read_text().splitlines()[1:]:
                entry = json.loads(line)
                total.update(f"{entry['name']}\0{entry.get('sha256')}\n".encode())
        return total.hexdigest()

    def _embed(self, folder: str, encoder: Encoder, source: Path, name: str) -> list[Path]:
        images, step, rows = self.sources[source], self.config.shard_rows, []
        for start in range(0, len(images), step):
            stop = min(start + step, len(images))
            rows.append(Rows(source.absolute(), start, stop, content_id(images, start, stop)))
        function, former = functools.partial(embed_rows, encoder), functools.partial(former_rows, images)
        return self._map(f"{folder}/{name}", function, rows, {"shard_rows": step}, lambda r: r.name, former)

    def _count_unreadable(self, shards: Sequence[Path]) -> None:
        total = self.sizes[self.config.pool]
        failures = [reason for path in shards for reason in unreadable_of(path).values()]
        if len(failures) > self.config.error_rate * total:
            raise too_many_unreadable(failures, total, self.config.error_rate)
        self.report["embed"] = {"images": total, "unreadable": len(failures)}

    def _neighbors(self, shards: list[Path]) -> tuple[list[Path], tuple[float, float]]:
        """Edges of the pool, low enough for every threshold; and the thresholds, calibrated or given."""
        config, path = self.config, self.config.out / CALIBRATION
        scores, floor, found = None, 0.0, None
        if config.calibrate:
            ids = calibration.choose_planted(shards, config.seed).tolist()
            parts = [tuple(ids[start : start + PLANT_ROWS]) for start in range(0, len(ids), PLANT_ROWS)]
            inputs = self._digest(*shards)
            plants = [calibration.Plant(config.pool.absolute(), part, config.seed, inputs) for part in parts]
            function = functools.partial(calibration.plant_copies, self.copies)
            planted = self._map("calibrate", function, plants, {"seed": config.seed}, lambda p: p.name)
            scores = calibration.copy_scores(planted, shards)
            floor = calibration.wanted_floor(scores)
        elif path.exists():
            found = calibration.load_calibration(path, self.copies)
            floor = found.floor
        given = [value for value in (config.threshold, config.reference_threshold) if value is not None]
        floor = min([floor, *given] if scores or found else given)
        edges = self._edges(shards, floor)
        if scores is not None:
            try:
                found = calibration.calibrate(self.copies, scores, edges, shards, floor)
                found.save(path)
                self.say(calibration.show_table(found))
            except calibration.CannotTell as refused:
                self.say(calibration.show_table(refused.calibration))
                if config.threshold is None:
                    raise
                self.say(f"tenfold: {refused} --threshold {config.threshold} is used.")
        duplicate = config.threshold if config.threshold is not None else found.threshold if found else None
        assert duplicate is not None, "curate() checked that something says so"
        against = config.reference_threshold
        if against is None:
            against = found.reference_threshold if found and config.threshold is None else duplicate
        return edges, (duplicate, against)

    def _edges(self, shards: list[Path], floor: float) -> list[Path]:
        config, vectors, inputs = self.config, Vectors(shards), self._digest(*shards)
        first = vectors.starts
        settings = {"k": config.k, "floor": floor, "neighbors": config.neighbors, "block": BLOCK}

        def pair(i: int, j: int, index: Path | None = None) -> duplicates.Pair:
            return duplicates.Pair(shards[i], shards[j], int(first[i]), int(first[j]), config.k, floor, inputs, index)

        count = len(shards)
        if config.neighbors == "exact":
            indices = [(i, j) for i in range(count) for j in range(i, count)]
            pairs = [pair(i, j) for i, j in indices]
            files = self._map("dedup/pairs", duplicates.exact_edges, pairs, settings, lambda p: p.name)
        else:
            sample = duplicates.Index(tuple(shards), inputs, seed=config.seed)
            trained = self._map("dedup/trained", duplicates.build_index, [sample], settings, lambda _: "empty.faiss")[0]
            fills = [duplicates.Index((path,), inputs, trained) for path in shards]
            full = self._map(
                "dedup/index", duplicates.build_index, fills, settings, lambda f: f"{f.shards[0].stem}.faiss"
            )
            indices = [(i, j) for i in range(count) for j in range(count)]
            pairs = [pair(i, j, full[j]) for i, j in indices]
            files = self._map("dedup/pairs", duplicates.approximate_edges, pairs, settings, lambda p: p.name)
        merges = []
        for i in range(count):
            parts = [f for f, (a, b) in zip(files, indices) if i == a or (i == b and config.neighbors == "exact")]
            rows = vectors.lengths[i]
            merges.append(duplicates.Merge(tuple(parts), int(first[i]), rows, config.k, self._digest(*files)))
        return self._map("dedup/neighbors", duplicates.merge_edges, merges, settings, lambda m: m.name)

    def _dedup(self, shards: list[Path], edges: list[Path], thresholds: tuple[float, float]) -> Path:
        group = duplicates.Group(tuple(edges), tuple(shards), thresholds[0], self._digest(*edges, *shards))
        settings = {"threshold": thresholds[0]}
        path = self._map("dedup/groups", duplicates.group_pool, [group], settings, lambda _: "groups.parquet")[0]
        labels, kept = read_column(path, "component"), read_column(path, "kept")
        sizes = np.bincount(labels)
        self.report["dedup"] = {
            "by": self.copies.by,
            "threshold": thresholds[0],
            "components": int((sizes > 1).sum()),
            "largest component": int(sizes.max()),
            "dropped": int((~kept).sum()),
            "left": int(kept.sum()),
        }
        return path

    def _relative_dedup(
        self, shards: list[Path], edges: list[Path], thresholds: tuple[float, float], survivors: Path
    ) -> Path:
        """Survivors of both; the first file itself without a reference set."""
        config = self.config
        touching: list[Path] = []
        first = Vectors(shards).starts
        for number, reference in enumerate(config.reference):
            others = self._embed("copies", self.copies, reference, f"reference-{number}")
            if blind := [reason for path in others for reason in unreadable_of(path).values()]:
                self.say(f"tenfold: {len(blind)} reference images cannot be compared: {' '.join(blind[:NAMED])}")
            starts, inputs = Vectors(others).starts, self._digest(*shards, *others)
            pairs = [
                duplicates.Pair(a, b, int(first[i]), int(starts[j]), 1, thresholds[1], inputs)
                for i, a in enumerate(shards)
                for j, b in enumerate(others)
            ]
            settings = {"threshold": thresholds[1]}
            folder = f"relative-dedup/reference-{number}"
            touching += self._map(folder, duplicates.touch_references, pairs, settings, lambda p: p.name)
        if not config.reference:
            self.report["relative-dedup"] = {"references": 0, "dropped": 0, "left": self.report["dedup"]["left"]}
            return survivors
        inputs = self._digest(survivors, *edges, *touching)
        group = duplicates.Group(tuple(edges), tuple(shards), thresholds[1], inputs, tuple(touching))
        function = functools.partial(keep_both, survivors)
        settings = {"threshold": thresholds[1]}
        path = self._map("relative-dedup/groups", function, [group], settings, lambda _: "groups.parquet")[0]
        kept, touched = read_column(path, "kept"), read_column(path, "touched")
        self.report["relative-dedup"] = {
            "references": sum(self.sizes[r] for r in config.reference),
            "threshold": thresholds[1],
            "touching": int(touched.sum()),
            "dropped": self.report["dedup"]["left"] - int(kept.sum()),
            "left": int(kept.sum()),
        }
        return path

    def _cluster(self, left: selection.Survivors, images: int) -> Path:
        config = self.config
        levels = config.levels or default_levels(images)
        clustering = selection.Clustering(levels, config.iterations, config.seed)
        function: Any = functools.partial(selection.cluster_pool, clustering)
        if images >= config.spread:  # this process reduces, workers map: the job below then finds its steps done
            steps = (
                config.out
                / "cluster"
                / f"steps-{left.inputs[:16]}-{hashlib.sha256(repr(clustering).encode()).hexdigest()[:16]}"
            )
            tree = steps / "tree"
            if not tree.exists():
                with aside(tree) as temporary:
                    over = selection.OverWorkers(left, steps, config.executor, config.workers)
                    selection.cluster_pool(clustering, left, temporary, over)
                over.clear()
            function = functools.partial(copy_tree, tree)
        path = self._map("cluster/tree", function, [left], asdict(clustering), lambda _: "tree")[0]
        found = [len(np.load(file)) for file in sorted(path.glob("centroids-*.npy"))]
        self.report["cluster"] = {"by": self.features.by, "levels": found}
        return path

    def _retrieve(self, left: selection.Survivors, tree: Path) -> list[tuple[Path, ...]]:
        config = self.config
        queries = config.query or config.reference
        if config.retrieve == "none" or not queries:
            self.report["retrieve"] = {"by": "none", "images": 0}
            return []
        retrieved, rows = [], set()
        for number, source in enumerate(queries):
            shards = self._embed("features", self.features, source, f"query-{number}")
            inputs = self._digest(*shards)
            settings = {"k": config.retrieve_k, "level": config.retrieve_level, "per_cluster": config.per_cluster}
            settings |= {"min_queries": config.min_queries, "seed": config.seed, "by": config.retrieve}
            whole = config.retrieve == "clusters"
            parts = [tuple(shards)] if whole else [(shard,) for shard in shards]
            survivors = selection.Survivors(left.shards, left.kept, left.inputs + inputs)
            asked = [
                selection.Queries(
                    survivors=survivors,
                    queries=part,
                    k=config.retrieve_k,
                    tree=tree if whole else None,
                    level=config.retrieve_level,
                    per_cluster=config.per_cluster,
                    min_queries=config.min_queries,
                    seed=config.seed,
                )
                for part in parts
            ]
            function = selection.retrieve_clusters if whole else selection.retrieve_nearest
            files = self._map(f"retrieve/query-{number}", function, asked, settings, lambda q: q.name)
            retrieved.append(tuple(files))
            rows.update(row for file in files for row in read_column(file, "row").tolist())
        self.report["retrieve"] = {"by": config.retrieve, "images": len(rows)}
        return retrieved

    def _manifest(self, left: selection.Survivors, tree: Path, retrieved: list[tuple[Path, ...]]) -> Path:
        config = self.config
        inputs = self._digest(tree.parent, left.kept, *(file for files in retrieved for file in files))
        survivors = selection.Survivors(left.shards, left.kept, left.inputs + inputs)
        choice = selection.Choice(
            survivors=survivors,
            tree=tree,
            retrieved=tuple(retrieved),
            target=config.target,
            share=config.retrieve_share,
            cap=config.retrieve_cap,
            strategy=config.strategy,
            multiplier=config.multiplier,
            seed=config.seed,
        )
        settings = {
            name: getattr(choice, name) for name in ("target", "share", "cap", "strategy", "multiplier", "seed")
        }
        return self._map("manifest", selection.choose, [choice], settings, lambda _: MANIFEST)[0]


@map_function("vision.keep_both", formerly=("tenfold.vision.curate:keep_both",))
def keep_both(survivors: Path, group: duplicates.Group, target: Path) -> None:
    """drop_touched, and what the first stage dropped stays dropped."""
    whole = target.with_name(target.name + "-touched")
    duplicates.drop_touched(group, whole)
    columns = {name: read_column(whole, name) for name in ("row", "component", "touched", "kept")}
    whole.unlink()
    columns["kept"] = columns["kept"] & read_column(survivors, "kept")
    duplicates.write_columns(target, **columns)


@map_function("vision.copy_tree", formerly=("tenfold.vision.curate:copy_tree",))
def copy_tree(made: Path, survivors: selection.Survivors, target: Path) -> None:
    """The tree that workers made together, as the output of its stage."""
    import shutil

    shutil.copytree(made, target)

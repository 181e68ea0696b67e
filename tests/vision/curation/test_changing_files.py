"""Curation knows the files of its shards: whatever changes in a pool or a test set, the result is that of a new folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tenfold.errors import DataError
from tenfold.shards import executor
from tenfold.shards.attempt import Function, Job, Outcome, attempt
from tenfold.vision.curation import embeddings
from tenfold.vision.curation.config import CurateConfig
from tenfold.vision.curation.curate import curate
from tenfold.vision.curation.embeddings import Encoder, Rows, embed_rows, read_column


class InThisProcess:
    """Workers without processes, which take seconds to start: as forgetful as new ones, for files change between calls."""

    def __init__(self, function: Function, count: int, threads: int) -> None:
        self.function, self.threads, self.outcomes = function, threads, list[Outcome]()
        embeddings.opened.cache_clear()

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *_: object) -> None: ...

    @property
    def busy(self) -> int:
        return len(self.outcomes)

    @property
    def free(self) -> int:
        return 1 - self.busy

    def submit(self, job: Job) -> None:
        self.outcomes.append(attempt(self.function, job, self.threads))

    def wait(self, seconds: float) -> list[Outcome]:
        done, self.outcomes = self.outcomes, []
        return done


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "workers_of", lambda name: InThisProcess)


def photograph(seed: int) -> np.ndarray:
    """Smooth noise: as different from each other as photographs are."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((48, 48), Image.Resampling.BICUBIC))


def save(path: Path, seed: int) -> None:
    Image.fromarray(photograph(seed)).save(path)


def rename(folder: Path) -> None:
    (folder / "p3.bmp").rename(folder / "z.bmp")


def add_first(folder: Path) -> None:
    save(folder / "a.bmp", 21)


def delete(folder: Path) -> None:
    (folder / "p2.bmp").unlink()


def replace_in_place(folder: Path) -> None:
    """The same name, size and time of writing."""
    status = (folder / "p1.bmp").stat()
    save(folder / "p1.bmp", 22)
    os.utime(folder / "p1.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (folder / "p1.bmp").stat().st_size == status.st_size


def swap(folder: Path) -> None:
    (folder / "p0.bmp").rename(folder / "x")
    (folder / "p5.bmp").rename(folder / "p0.bmp")
    (folder / "x").rename(folder / "p5.bmp")


CHANGES = (rename, add_first, delete, replace_in_place, swap)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A pool of six; a test set of six others, until it changes to hold pictures 21 and 22 of the pool."""
    for part, seeds in (("pool", (0, 1, 2, 3, 21, 22)), ("reference", range(10, 16))):
        (tmp_path / part).mkdir()
        for number, seed in enumerate(seeds):
            save(tmp_path / part / f"p{number}.bmp", seed)
    return tmp_path


def curated(place: Path, out: str) -> tuple[list[str], list[str]]:
    config = CurateConfig(
        "pixels", place / "pool", 50, place / out, (place / "reference",), threshold=0.8, shard_rows=2
    )
    curate(config)
    table = pq.read_table(place / out / "manifest.parquet")
    return [Path(name).name for name in table["name"].to_pylist()], table["sha256"].to_pylist()


@pytest.mark.parametrize("changed", ["pool", "reference"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_set_gives_what_a_new_folder_would(place: Path, changed: str, change: Callable[[Path], None]) -> None:
    curated(place, "out")
    change(place / changed)
    assert curated(place, "out") == curated(place, "new")


@pytest.mark.parametrize(("change", "gone"), [(add_first, "p4.bmp"), (replace_in_place, "p5.bmp")])
def test_a_picture_that_comes_into_the_test_set_leaves_the_result(
    place: Path, change: Callable[[Path], None], gone: str
) -> None:
    assert gone in curated(place, "out")[0]
    change(place / "reference")
    assert gone not in curated(place, "out")[0]


def test_nothing_is_done_again_while_the_files_stay_the_same(place: Path) -> None:
    curated(place, "out")
    before = {path: path.stat().st_mtime_ns for path in (place / "out").glob("*/*/*.parquet")}
    curated(place, "out")
    assert before
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_blank_picture_of_the_test_set_leaves_the_result_too(place: Path) -> None:
    for part in ("pool", "reference"):
        Image.new("RGB", (40, 40), (90, 90, 90)).save(place / part / "blank.bmp")
    assert "blank.bmp" not in curated(place, "out")[0]


def test_a_shard_of_version_0_1_is_trusted_when_it_holds_these_files_alone(place: Path, tmp_path: Path) -> None:
    shard = tmp_path / "rows.parquet"
    source = embeddings.opened(place / "pool")
    embed_rows(Encoder(), Rows(place / "pool", 0, 6), shard)
    former, still = embeddings.former_rows(source, Rows(place / "pool", 0, 6, "files"), shard)
    assert former == {"source": str(place / "pool"), "start": 0, "stop": 6}
    assert still()
    replace_in_place(place / "pool")
    assert not still()


def test_a_pool_that_changes_under_a_worker_is_said(place: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="changed while it was read"):
        embed_rows(Encoder(), Rows(place / "pool", 0, 6, "files of before"), tmp_path / "rows.parquet")


def test_names_that_are_not_utf8_are_kept_as_text(place: Path) -> None:
    shutil.copy(place / "pool/p0.bmp", place / "pool" / os.fsdecode(b"caf\xe9.bmp"))
    save(place / "pool/two\nlines.bmp", 30)
    save(place / "pool/Two\nlines.bmp", 31)
    names = curated(place, "out")[0]
    assert {"two\nlines.bmp", "Two\nlines.bmp"} < set(names)
    shards = (place / "out/copies/pool").glob("*.parquet")
    assert r"caf\xe9.bmp" in {Path(name).name for path in shards for name in read_column(path, "name")}
    assert json.loads((place / "out/report.json").read_text())["embed"]["unreadable"] == 0

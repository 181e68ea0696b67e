"""Real photographs for every test of the curation room, decoded and encoded once: a pool with copies, and a test set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tenfold.data.sources import open_source
from tenfold.vision.curation.calibrate import copies_of
from vision.curation_inputs import encoded, write_pool


@pytest.fixture(scope="session")
def photographs(test_data: Path) -> list[np.ndarray]:
    source = open_source(test_data / "vision/imagenette160_val.parquet")
    return [source[index].image for index in range(0, 1991, 6)]


@pytest.fixture(scope="session")
def pool(photographs: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 photographs, then copies of the first 100: re-encoded, resized, cropped in turn."""
    rng = np.random.default_rng(5)
    copies = [copies_of(image, rng)[number % 3] for number, image in enumerate(photographs[:100])]
    images = [encoded(image) for image in [*photographs[:200], *copies]]
    return write_pool(tmp_path_factory.mktemp("pool") / "pool.parquet", images)


@pytest.fixture(scope="session")
def reference(photographs: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A test set: ten photographs that are in the pool, five of them twice there, and twenty that are not."""
    chosen = photographs[95:105] + photographs[300:320]
    return write_pool(tmp_path_factory.mktemp("test") / "test.parquet", [encoded(image) for image in chosen])

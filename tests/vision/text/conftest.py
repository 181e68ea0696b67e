"""Photographs with labels for every test of the text room."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest


@pytest.fixture(scope="session")
def labelled(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty-four labelled photographs."""
    path = tmp_path_factory.mktemp("labelled") / "photos.parquet"
    source = pq.ParquetFile(test_data / "vision/imagenette160_val.parquet")
    pq.write_table(source.read_row_group(0).slice(0, 64), path)
    return path

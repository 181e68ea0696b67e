"""The small byte model on Shakespeare, for every test of reliability."""

from __future__ import annotations

from pathlib import Path

import pytest

from byte_runs import ByteLm


@pytest.fixture(scope="session")
def byte_lm(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> ByteLm:
    return ByteLm(test_data / "text/tinyshakespeare.txt.gz", tmp_path_factory.mktemp("logs"))

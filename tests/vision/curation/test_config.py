"""The configuration of a curation: a wrong value names its field, before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tenfold.config import from_dict, to_dict
from tenfold.errors import UsageError
from tenfold.vision.curation.config import CurateConfig

CONFIG = CurateConfig("pixels", Path("pool"), 5, Path("out"), reference=(Path("test"),), levels=(20, 4))


@pytest.mark.parametrize(
    ("name", "value"),
    [("target", 0), ("threshold", 1.5), ("k", 0), ("retrieve_share", 2.0), ("threshold", np.nan), ("seed", -1)],
)
def test_a_wrong_value_names_its_field(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{name} = {value}: allowed"):
        replace(CONFIG, **{name: value})


def test_a_configuration_survives_its_dictionary_and_an_unknown_field_is_told() -> None:
    assert from_dict(CurateConfig, to_dict(CONFIG)) == CONFIG
    with pytest.raises(UsageError, match="treshold"):
        from_dict(CurateConfig, to_dict(CONFIG) | {"treshold": 0.6})

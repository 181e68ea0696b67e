"""What recipes on images share: their images opened as configured, live loss values, and refusals by field."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tenfold.engine.schedule import Schedule
from tenfold.errors import UsageError
from tenfold.vision.pretraining.crops import MultiCropConfig
from tenfold.vision.pretraining.image_recipe import ImageRecipe
from tenfold.vision.pretraining.objectives import ObjectiveConfig


@pytest.mark.parametrize(
    ("wrong", "allowed"),
    [
        ({"batch": 1}, "Sinkhorn and KoLeo compare images"),
        ({"val_k": 0}, "whole number >= 1"),
        ({"val_rows": 0}, "None or a whole number >= 1"),
        ({"source_side": 4}, "a side in pixels >= 8"),
    ],
)
def test_a_wrong_value_names_its_field(wrong: dict[str, int], allowed: str) -> None:
    with pytest.raises(UsageError, match=rf"{next(iter(wrong))} = \d: allowed .*{allowed}"):
        ImageRecipe(**wrong)


def test_the_losses_read_the_schedules_of_the_objective() -> None:
    temperature, momentum, local = (Schedule("linear", peak=peak, final=0.5) for peak in (0.1, 0.9, 0.7))
    recipe = ImageRecipe(objective=ObjectiveConfig(teacher_temperature=temperature, momentum=momentum, local=local))
    expected = {"teacher_temperature": temperature, "momentum": momentum, "local_weight": local}
    assert recipe.loss_schedules() == expected


@pytest.mark.parametrize(("side", "kept"), [(24, 24), (None, 40)])
def test_images_are_kept_at_the_side_asked_for_or_decoded_when_drawn(
    side: int | None, kept: int, tmp_path: Path
) -> None:
    for n in range(3):
        Image.fromarray(np.full((40, 40, 3), 60 * n, np.uint8)).save(tmp_path / f"{n}.png")
    recipe = ImageRecipe(data=tmp_path, source_side=side, crops=MultiCropConfig(global_size=16, local_size=8))
    photographs = recipe.open_photographs()
    assert [photographs.train[n].image.shape for n in range(3)] == [(kept, kept, 3)] * 3
    assert photographs.floor(1) is None  # without --val there is nothing to score

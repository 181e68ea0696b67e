"""The configuration that recipes of self-supervised training on images share: data, crops, losses and the k-NN curve."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tenfold.config import require
from tenfold.engine.recipe import Recipe
from tenfold.engine.schedule import Schedule
from tenfold.vision.pretraining.crops import MultiCropConfig
from tenfold.vision.pretraining.objectives import ObjectiveConfig
from tenfold.vision.pretraining.photographs import Photographs, open_photographs


@dataclass(frozen=True)
class ImageRecipe(Recipe):
    """Base of the recipes that cut crops of images and compare a student with a teacher on them."""

    data: Path | None = None  # images to train on; without it, the photographs of the scikit-image sample
    val: Path | None = None  # labelled images for the k-NN curve; without it, held-back tiles of the photographs
    batch: int = 64  # images per step, over all ranks
    source_side: int | None = (
        64  # images are decoded once and kept in memory at this side; None decodes each when drawn
    )
    crops: MultiCropConfig = field(default_factory=MultiCropConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    val_k: int = 20  # neighbours of the k-NN curve
    val_rows: int | None = None  # use at most so many images of each set for the curve

    def __post_init__(self) -> None:
        require(self.batch >= 2, "batch", self.batch, "a whole number >= 2 (Sinkhorn and KoLeo compare images)")
        require(self.val_k >= 1, "val_k", self.val_k, "a whole number >= 1")
        require(self.val_rows is None or self.val_rows >= 1, "val_rows", self.val_rows, "None or a whole number >= 1")
        side = self.source_side
        require(side is None or side >= 8, "source_side", side, "None or a side in pixels >= 8")

    def open_photographs(self) -> Photographs:
        """The images of `data` and `val`."""
        side, errors = self.crops.global_size, self.trainer.data_errors
        return open_photographs(self.data, self.val, self.source_side, side, self.val_rows, errors)

    def loss_schedules(self) -> dict[str, Schedule]:
        """Live values that the losses and the EMA teacher read from the task's `hparams`."""
        return {
            "teacher_temperature": self.objective.teacher_temperature,
            "momentum": self.objective.momentum,
            "local_weight": self.objective.local,
        }

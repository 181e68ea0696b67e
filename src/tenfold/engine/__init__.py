"""The training engine: tasks, recipes, one trainer, checkpoints, schedules.

Public names, imported when they are used; docs/api.md has a line and an example for each. Rooms may move; these stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenfold.registry import public_names

if TYPE_CHECKING:
    from tenfold.engine.conformance import check_task as check_task
    from tenfold.engine.recipe import Recipe as Recipe
    from tenfold.engine.recipe import TrainerConfig as TrainerConfig
    from tenfold.engine.schedule import OptimConfig as OptimConfig
    from tenfold.engine.schedule import Schedule as Schedule
    from tenfold.engine.task import Phase as Phase
    from tenfold.engine.task import Task as Task
    from tenfold.engine.trainer import Trainer as Trainer

__all__ = ["OptimConfig", "Phase", "Recipe", "Schedule", "Task", "Trainer", "TrainerConfig", "check_task"]

__getattr__, __dir__ = public_names(
    __name__,
    {
        "tenfold.engine.conformance": "check_task",
        "tenfold.engine.recipe": "Recipe TrainerConfig",
        "tenfold.engine.schedule": "OptimConfig Schedule",
        "tenfold.engine.task": "Phase Task",
        "tenfold.engine.trainer": "Trainer",
    },
)

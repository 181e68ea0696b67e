"""A length of training: a number of steps (int), or a share of the run (float from 0.0 to 1.0).

    steps_of(200, total=1000) == 200          steps_of(0.05, total=1000) == 50

1 is one step and 1.0 the whole run. Schedules, warm-ups, and what is frozen or dense for a while are given so.
"""

from __future__ import annotations

import math

ALLOWED_LENGTHS = "a number of steps (int >= 0) or a share of the run (float from 0.0 to 1.0)"


def is_length(value: int | float) -> bool:
    """Whether `value` is one of `ALLOWED_LENGTHS`."""
    return 0 <= value < math.inf and (isinstance(value, int) or value <= 1)


def steps_of(value: int | float, total: int) -> int:
    """The steps that `value` means in a run of `total`."""
    return value if isinstance(value, int) else round(value * total)

"""A rank that leaves its group while gloo still lets go of a tensor that Python has dropped, and DDP holds the group last."""

from __future__ import annotations

import os
import sys

from torch import nn

from tenfold.engine.parallel import join, wrap


def main(environment: dict[str, str], ports: list[int]) -> None:
    for port in ports:
        os.environ.update({**environment, "MASTER_PORT": str(port)})
        place = join("cpu")
        model = wrap(nn.Linear(2, 2), place, "ddp")
        sys.setswitchinterval(60)  # the interpreter is not given up but where something waits with it released
        assert not place.any(False)
        place.leave()
        del model
        sys.setswitchinterval(0.005)

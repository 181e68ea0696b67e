"""A step that stays on the device waits for nothing there and joins no two devices, seen without a GPU: torch has tensors
without numbers, on a device that is none, where it refuses both."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from language.drafting_models import tiny_drafter, tiny_target
from language.engine_models import TREE
from tenfold.language.decoding.device_step import Plan, Resident
from tenfold.language.decoding.request import Request
from tenfold.language.decoding.runner import Runner
from tenfold.language.drafting.dynamic import DynamicTree, draft_dynamic
from tenfold.language.drafting.tree import TENSORS, Level
from tenfold.language.drafting.tree_drafter import TreeDrafter
from tenfold.language.sampling.sampling import SamplingParams

DEVICE = "gpu"


def test_a_step_waits_for_no_device_and_joins_none() -> None:
    """In a process of its own, which gets to know a device more."""
    done = subprocess.run(
        [sys.executable, "-m", "language.decoding.test_device_step"], capture_output=True, text=True, cwd="tests"
    )
    assert done.returncode == 0, done.stderr
    assert "30 steps" in done.stdout


def moved(module: nn.Module) -> nn.Module:
    """Module.to cannot replace the parameters of this kind."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(parameter.detach().to(DEVICE), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(DEVICE)
    return module


class NothingFromTheHost(TorchDispatchMode):
    """Every operation's tensors lie on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_leaves([args, kwargs or {}])
        assert all(t.device.type == DEVICE for t in given if isinstance(t, torch.Tensor)), func
        return func(*args, **(kwargs or {}))


def check_step(kinds: frozenset, drafter: dict | None, simulated: float | None) -> None:
    target = tiny_target(context=100)
    network = None if drafter is None else moved(tiny_drafter(target, **drafter))
    moved(target)
    made = None if network is None else TreeDrafter(network, target)  # type: ignore[arg-type]
    resident = Resident(Runner(target, made, 50, 4), 3, 120)
    if made is not None:
        c = made.network.config
        carry = [torch.zeros(4, width, device=DEVICE) for width in (c.dim, c.draft_vocabulary)]
        resident.carry = (carry[0], carry[1])
    plan = Plan(4, TREE, "without_replacement" if "sampled" in kinds else "top_k", kinds, simulated)
    resident.run(plan)
    with NothingFromTheHost():  # the tree is there by now; what a graph copies from the host it would copy for ever
        resident.run(plan)
    out = resident.out(plan)
    assert out.device.type == DEVICE
    with pytest.raises(DataDependentOutputException):  # what this would not see, it could not refuse
        out.tolist()
    with pytest.raises(FakeTensorDeviceMismatchError):
        _ = out + torch.ones(4, 1, dtype=torch.int64)


def check_steps_of_the_host(drafter: dict) -> None:
    """Prompts, drafts and dynamic trees: the host waits for these, but they join no two devices either."""
    target = tiny_target(context=100)
    network = moved(tiny_drafter(target, **drafter))
    moved(target)
    made = TreeDrafter(network, target)  # type: ignore[arg-type]
    runner = Runner(target, made, 50, 4)
    for rope in (target.rope, made.network.rope):
        rope.reserve(200)
    requests = [
        Request(str(i), [5, 6, 7, 8, 9][: 5 - i], SamplingParams(), seed=i, tokenizer=None, stops=frozenset())
        for i in range(2)
    ]
    for request in requests:
        runner.start(request)
        assert request.table is not None
        assert runner.pages.cover(request.table, 60)
    runner.prefill([(requests[0], 4), (requests[1], 3)])
    states = [r.draft for r in requests if r.draft is not None]
    draft = made.draft(states, TREE, "top_k", torch.zeros(2), lambda slots, width: torch.zeros(0))
    assert draft.tokens.device.type == DEVICE
    drafts, trees_of_two = draft_dynamic(made, states, DynamicTree(top_k=3, depth=2, total=7))
    assert drafts.tokens.device.type == "cpu"
    assert trees_of_two.parents.shape == (2, 7)


def check_all() -> None:
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(DEVICE)
    every = itertools.product(
        [{"greedy"}, {"greedy", "sampled"}, {"sampled", "top_k", "top_p"}],
        [None, {}, {"method": "eagle1"}, {"sliding_window": 6}, {"draft_vocabulary": 96}],
        [None, 0.5],
    )
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    values = {name: mode.from_tensor(getattr(TREE, name)) for name in TENSORS}
    levels = []
    for level, width in zip(TREE.levels, [level.width for level in TREE.levels]):
        parts = [getattr(level, field.name) for field in fields(level)]
        levels.append(Level(*(mode.from_tensor(p) if isinstance(p, torch.Tensor) else p for p in parts)))
        levels[-1].__dict__["width"] = width
    TREE.__dict__.update(values, height=TREE.height, levels=levels)
    with mode:
        steps = [check_step(frozenset(kinds), drafter, simulated) for kinds, drafter, simulated in every]
        for drafter in ({}, {"method": "eagle1"}, {"sliding_window": 6}):
            check_steps_of_the_host(drafter)
    print(len(steps), "steps")


if __name__ == "__main__":
    check_all()

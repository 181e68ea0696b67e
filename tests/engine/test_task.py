"""Hooks of a task: what the trainer does to a model for memory and for several devices, it asks for; it knows no system."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from torch import nn

import tenfold.engine
from engine.watched_task import Watched, fit
from tenfold.engine.task import Task
from tenfold.nn.attention import AttentionConfig
from tenfold.nn.block import Block, BlockConfig
from tenfold.nn.ffn import GeluFFN


def test_hooks_run_in_order_around_build(tmp_path: Path) -> None:
    task = Watched()
    fit(task, tmp_path)
    assert task.seen == ["before build", "build", "after build", "parallelize Model"]


def test_transformer_blocks_are_layers_and_what_holds_them_is_not() -> None:
    blocks = nn.ModuleList(Block(BlockConfig(AttentionConfig(8, 2)), GeluFFN(8, 16)) for _ in range(3))
    assert Task().layers(nn.Sequential(nn.Linear(8, 8), nn.Sequential(*blocks))) == list(blocks)


@pytest.mark.parametrize("name", ["trainer", "parallel", "optim", "guard", "task", "checkpoint", "run_folder"])
def test_the_engine_imports_no_model(name: str) -> None:
    tree = ast.parse(Path(tenfold.engine.__path__[0], f"{name}.py").read_text())
    found = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    systems = ("tenfold.nn", "tenfold.engine.memory_parallel", "tenfold.vision", "tenfold.language")
    assert not [module for module in found if module.startswith(systems)]

"""Costs of a step on this machine: a table that covers every width, measured by an engine that is left as it was."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from language.small_pair import small_pair
from tenfold.language.decoding.engine import LLM
from tenfold.language.drafting.reference_trees import TREE_16
from tenfold.language.drafting.speculation import NONE
from tenfold.language.tuning.tree_costs import ROWS, WIDTHS, measure_costs, step_clock


def test_every_width_has_a_cost_and_the_engine_is_left_as_it_was(tmp_path: Path) -> None:
    model, drafter = small_pair(tmp_path)
    llm = LLM(model, drafter, weights="fp32", cache_tokens=1024)
    before = llm.engine.speculation
    costs = measure_costs(llm, [[1, 2, 3]], (1,))
    assert costs.weights == "fp32"
    assert tuple(costs.verify[1]) == WIDTHS
    assert tuple(costs.level[1]) == ROWS
    assert all(ms > 0 for ms in (*costs.verify[1].values(), *costs.level[1].values()))
    assert all(ms >= 0 for ms in costs.host[1])
    assert costs.ms(1, NONE) < costs.ms(1, TREE_16)
    assert llm.engine.speculation is before
    assert not llm.engine.busy
    assert llm.engine.runner.pages.free == llm.engine.runner.pages.count


@pytest.mark.parametrize(("threads", "clock"), [(1, time.thread_time), (2, time.perf_counter)])
def test_one_thread_is_timed_by_its_own_work(threads: int, clock: object) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert step_clock() is clock
    finally:
        torch.set_num_threads(before)

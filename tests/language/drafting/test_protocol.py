"""Drafter protocol: a class of a stranger that has `draft` and nothing else decodes losslessly, and no class is asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tenfold
from language.engine_models import HYBRID, TREE, alone, finish, prompts, tiny_llama
from tenfold.errors import UsageError
from tenfold.language.decoding.engine import LLMEngine
from tenfold.language.drafting.hybrid_trees import FittedTree, HybridTree
from tenfold.language.drafting.protocol import Draft, Drafter, DraftState, Rule, Shape, Uniforms
from tenfold.language.drafting.speculation import Speculation
from tenfold.language.drafting.tree import Tree
from tenfold.language.sampling.sampling import SamplingParams


class Echo(Drafter):
    """Proposes the last token again, along the first ranks; other nodes get the tokens after it."""

    def draft(
        self, states: Sequence[DraftState], tree: Tree, rule: Rule, temperatures: Tensor, uniforms: Uniforms
    ) -> Draft:
        last = torch.tensor([[state.tokens[-1]] for state in states])
        return Draft((last + tree.rank[1:]) % 23)


def engine(shape: Shape | str, **options: object) -> LLMEngine:
    plan = Speculation(tree=shape)  # type: ignore[arg-type]
    return LLMEngine(tiny_llama(), None, Echo(), speculation=plan, page_size=4, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    "shape", ["auto", TREE, HYBRID, FittedTree(HYBRID, HybridTree.of(Tree.chain(1), 2), Tree.chain(2))], ids=str
)
def test_a_drafter_by_the_protocol_only_writes_the_text_of_plain_decoding(shape: Shape | str, batch: int) -> None:
    requests = {str(i): (p, SamplingParams(max_tokens=12)) for i, p in enumerate(prompts(4))}
    found = finish(engine(shape, max_batch=batch), requests)
    for name, (prompt, params) in requests.items():
        assert found[name] == alone(tiny_llama(), prompt, params.max_tokens), name


def test_its_draft_tokens_are_accepted_where_they_are_right() -> None:
    requests = [(p, SamplingParams(temperature=1.5, max_tokens=40, seed=i)) for i, p in enumerate(prompts(6))]
    plain, drafted = LLMEngine(tiny_llama(), page_size=4), engine(TREE)
    calls = {}
    for name, one in (("plain", plain), ("drafted", drafted)):
        for i, (prompt, params) in enumerate(requests):
            one.add_request(str(i), prompt, params)
        stats = []
        while one.busy:
            stats += [delta.stats for delta in one.step() if delta.stats]
        calls[name] = sum(s.calls for s in stats)
    assert calls["drafted"] < calls["plain"] == 240


def test_what_it_cannot_do_is_refused_and_what_it_need_not_say_has_a_default() -> None:
    drafter = Echo()
    with pytest.raises(UsageError, match="dynamic tree"):
        Speculation(tree="dynamic").plan(1, False, drafter)
    assert drafter.open(4, 4) is drafter.resident() is drafter.level_pass(1, 1, 8) is None
    assert drafter.fingerprint() == "Echo"
    assert LLMEngine(tiny_llama(), None, drafter, async_scheduling=True).async_steps is None
    assert isinstance(drafter, Drafter)
    assert all(isinstance(shape, Shape) for shape in (TREE, HYBRID))


def test_no_module_asks_for_the_class_of_a_drafter_or_of_a_tree() -> None:
    asked = re.compile(r"isinstance\([^)]*(Drafter|Tree|TreeBatch)\b[^)]*\)|[gs]etattr\((\w+\.)*drafter")
    files = sorted(Path(tenfold.__file__).parent.rglob("*.py"))
    found = [f"{file.name}: {m[0]}" for file in files for m in asked.finditer(file.read_text())]
    assert len(files) > 100
    assert not found

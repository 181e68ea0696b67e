"""Weight formats stand in one table: a toy format is one entry, and decodes; no other file spells the names."""

from __future__ import annotations

import ast
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gguf_files import fields, write
from language.engine_models import tiny_llama
from tenfold.errors import UsageError
from tenfold.kernels.formats import FORMATS, Weight, WeightFormat, add, entry, memory_bound_rows, pack, refusal
from tenfold.kernels.packed import PlainLinear
from tenfold.language.commands import Chat, Generate
from tenfold.language.decoding.engine import LLM
from tenfold.language.sampling.sampling import SamplingParams
from tenfold.language.serve_commands import ServeLanguage

SOURCE = Path(sys.modules["tenfold"].__file__ or "").parent


class Rounded(PlainLinear):
    """A toy format: fp32 rounded to the nearest fp16."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight.half().float(), bias)
        self.bytes = weight.numel() * 2


@pytest.fixture
def toy() -> Iterator[str]:
    add(WeightFormat("toy", "fp32 rounded to fp16", "float32", {512: 3, 256: 5}, devices=("cpu",), pack=Rounded))
    yield "toy"
    del FORMATS["toy"]


def test_a_new_format_is_one_entry_of_the_table_and_decodes(toy: str, tmp_path: Path) -> None:
    words = fields()
    model = tiny_llama(len(typing.cast(list, words["tokenizer.ggml.tokens"])), dim=64, hidden=96)
    path = write(tmp_path / "tiny.gguf", model, tokenizer=words)
    params = SamplingParams(max_tokens=12)
    llm, plain = LLM(path, "ngram", weights=toy), LLM(path, None, weights="fp32")
    maps = [m for m in llm.model.modules() if isinstance(m, Rounded)]
    assert len(maps) == 4 * model.config.depth + 1  # the output projection has it too: its rows flow in fp32
    assert llm.format == toy
    assert f"weights in {toy}" in llm.notes[0]
    assert llm.weight_bytes == sum(m.inputs * m.outputs * 2 for m in maps)
    assert memory_bound_rows(toy) in (3, 5)  # from the entry: as many draft tokens as it says cost little
    tree = llm.drafter.planner(1, False)[0] if llm.drafter is not None and llm.drafter.planner is not None else None
    assert tree is not None
    assert tree.nodes <= memory_bound_rows(toy)

    rounded = tiny_llama(len(typing.cast(list, words["tokenizer.ggml.tokens"])), dim=64, hidden=96)
    for name, parameter in rounded.named_parameters():
        if parameter.ndim == 2 and name != "embedding.weight":
            parameter.copy_(parameter.half().float())
    ids = torch.tensor([llm.tokenizer.encode("ab ab")])
    with torch.inference_mode():
        ours, exact, other = (m(ids).logits for m in (llm.model, rounded, plain.model))
    torch.testing.assert_close(ours, exact, atol=2e-2, rtol=1e-3)
    assert not torch.equal(ours, other)  # rounded it is
    answer = llm.generate(["ab ab ab"], params)[0]
    assert answer.token_ids == LLM(path, None, weights=toy).generate(["ab ab ab"], params)[0].token_ids


def test_flags_take_their_choices_from_the_table() -> None:
    for verb in (Generate, Chat, ServeLanguage):
        assert typing.get_args(typing.get_type_hints(verb)["weights"]) == ("auto", *FORMATS)


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown weight format 'int9'\. Did you mean 'int[48]'\?"):
        entry("int9")
    with pytest.raises(UsageError, match="weights in int4: 4 bits are taken"):
        pack(torch.ones(2, 32), None, "int4")


def test_int4_takes_what_a_gguf_file_holds_in_q4_1_and_refuses_the_rest() -> None:
    part = "blk.0.ffn_down.weight"
    assert refusal("int4", Weight(32, stored={part: "Q4_1"})) is None
    assert "and are Q8_0" in str(refusal("int4", Weight(32, stored={part: "Q8_0"})))
    assert "with a bias" in str(refusal("int4", Weight(32, bias=True, stored={part: "Q4_1"})))
    assert "runs on cpu" in str(refusal("int4", Weight(32, device="cuda", stored={part: "Q4_1"})))


def test_every_format_says_how_many_rows_are_memory_bound() -> None:
    assert {memory_bound_rows(name, "cuda") for name in FORMATS} == {64}
    for name, row in FORMATS.items():
        assert memory_bound_rows(name) in row.rows.values()


def test_no_other_file_spells_the_list_of_formats() -> None:
    names, found = set(FORMATS), []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            children = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else getattr(node, "keys", [])
            if len(names & {c.value for c in children if isinstance(c, ast.Constant)}) > 2:
                found.append(path.name)
    assert set(found) <= {"formats.py"}


def test_the_table_loads_no_torch() -> None:
    code = "import sys, tenfold.kernels.formats, tenfold.language.commands; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0

"""`tenfold language tree`: a table that decoding reads, measured on this machine; too few prompts or batches are refused."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from language.small_pair import counting_pair
from tenfold.cli import main
from tenfold.language.decoding.engine import LLM
from tenfold.language.drafting.ngram import HybridDrafter, NgramDrafter
from tenfold.language.sampling.sampling import SamplingParams
from tenfold.language.tuning.tree_search import dispatch


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--limit", "7"], "--limit 7: at least 8 prompts are needed"),
        (["--batches", "0"], "allowed are whole numbers >= 1"),
    ],
)
def test_too_few_prompts_or_batches_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["language", "tree", "drafter", "--prompts", "p.jsonl", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_table_that_is_written_decides_the_trees_and_keeps_the_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, drafter = counting_pair(tmp_path)
    prompts, table, picture = tmp_path / "p.jsonl", tmp_path / "dispatch.json", tmp_path / "tree.svg"
    prompts.write_text("".join(json.dumps({"prompt": "ab" * i}) + "\n" for i in range(1, 9)))
    words = ["--target", str(model), "--prompts", str(prompts), "--out", str(table), "--picture", str(picture)]
    assert main(["language", "tree", str(drafter), *words, "--limit", "8", "--batches", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["entries"]
    assert rows[0]["batch"] == 1
    assert rows[0]["tpc"] >= 1
    assert rows[0]["ms"] > 0
    ElementTree.fromstring(picture.read_text())
    llm = LLM(model, drafter)
    assert llm.drafter is not None
    llm.drafter = llm.engine.runner.drafter = HybridDrafter(llm.drafter, NgramDrafter())
    params = SamplingParams(max_tokens=12)
    plain = LLM(model, None).generate(["abab"], params)[0]
    dispatch(llm, table)
    entry = next(e for e in json.loads(table.read_text())["entries"] if e["temperature"] == "0")
    assert rows[0]["nodes"] == len(entry["paths"]) + rows[0]["looked up"]
    assert llm.generate(["abab"], params)[0].token_ids == plain.token_ids

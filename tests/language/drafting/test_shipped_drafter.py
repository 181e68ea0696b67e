"""The drafter in the package: small enough, tied to its target, better than look-up, and the text stays the target's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import tenfold
from tenfold.cli import main
from tenfold.engine.trainer import Trainer
from tenfold.export.weights import convert
from tenfold.language.decoding.engine import LLM
from tenfold.language.distillation.recipes import eagle3_smollm2
from tenfold.language.drafting.drafter import Eagle3Drafter
from tenfold.language.drafting.ngram import HybridDrafter
from tenfold.language.drafting.reference_trees import TREE_16
from tenfold.language.drafting.speculation import Speculation
from tenfold.language.drafting.weights import check_target
from tenfold.language.models.llama import Llama
from tenfold.language.models.tokenizer import read_prompts
from tenfold.language.sampling.sampling import SamplingParams
from tenfold.language.tuning import measure as evaluate
from tenfold.language.tuning.measure import engine_tpc

ASSETS = Path(tenfold.__file__).parent / "assets"
SHIPPED = ASSETS / "eagle3-smollm2-135m.safetensors"


def test_file_is_small_enough_for_the_package_and_has_its_card() -> None:
    assert SHIPPED.stat().st_size <= 20_000_000
    card = SHIPPED.with_suffix(".md").read_text()
    for word in ("Recipe", "Commit", "Data", "Apache-2.0", "MIT", "TPC", "may not be claimed"):
        assert word in card, word
    drafter = tenfold.load(SHIPPED)
    assert isinstance(drafter, Eagle3Drafter)
    assert drafter.fc.weight.dtype == torch.bfloat16
    assert drafter.config.draft_vocabulary == 8192


@pytest.mark.parametrize("to", ["sglang", "speculators"])
def test_it_goes_to_serving_engines_and_back_bit_for_bit(tmp_path: Path, to: str) -> None:
    back = tenfold.load(convert(SHIPPED, tmp_path / to, to=to))
    for name, tensor in tenfold.load(SHIPPED).state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)


@pytest.mark.samples
def test_it_belongs_to_the_sample_and_auto_finds_it(smollm2: Path) -> None:
    target, drafter = tenfold.load(smollm2), tenfold.load(SHIPPED)
    assert isinstance(target, Llama)
    assert isinstance(drafter, Eagle3Drafter)
    check_target(drafter.config, target, SHIPPED)
    assert isinstance(LLM(smollm2).drafter, HybridDrafter)


@pytest.mark.samples
def test_it_saves_passes_and_the_text_is_the_targets_own(smollm2: Path, test_data: Path) -> None:
    """In fp32, where rounding decides nothing; few prompts, so the bars are below the figures of the docs."""
    texts = read_prompts(test_data / "text/prompts/gsm8k.jsonl")[:2]
    alone = LLM(smollm2, None, weights="fp32")
    prompts = [alone.tokenizer.chat([{"role": "user", "content": t}]) for t in texts]
    params = SamplingParams(max_tokens=32)
    plain = alone.generate(prompts, params)
    drafted = LLM(smollm2, SHIPPED, Speculation(tree=TREE_16), weights="fp32").generate(prompts, params)
    assert [r.token_ids for r in drafted] == [r.token_ids for r in plain]
    assert engine_tpc(plain) == 1.0
    assert engine_tpc(drafted) > 1.5


@pytest.mark.slow
@pytest.mark.samples
def test_long_contexts_end_where_short_ones_do(
    smollm2: Path, test_data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "TOKENS", 12)
    words = ["eval", "speculative", str(SHIPPED), "--target", str(smollm2), "--limit", "2", "--json", "--val"]
    text = str(test_data / "text/wikitext2_test.txt.gz")
    assert main([*words, text, "--lengths", "24", "300"]) == 0
    report = json.loads(capsys.readouterr().out)
    for length in (24, 300):
        assert 1 <= report[f"engine TPC tree 16 behind {length} tokens, all answers"] <= 5
    assert main([*words, text, "--lengths", "24", "9000"]) == 2
    assert "2 to 8180 tokens" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.samples
def test_ten_minutes_of_training_take_a_drafter_from_nothing_to_something(
    smollm2: Path, test_data: Path, tmp_path: Path
) -> None:
    base = eagle3_smollm2()
    recipe = dataclasses.replace(
        base,
        trainer=dataclasses.replace(base.trainer, steps=120, validate_every=0),
        rollouts=dataclasses.replace(base.rollouts, prompts=test_data / "text/gsm8k_train.jsonl.gz", round_size=192),
    )
    task = recipe.make_task()
    untrained = task.validate(task.build().eval())["tpc_chain4_held_back"]
    assert untrained < 1.15
    trained = Trainer(task, recipe, tmp_path / "run", name="eagle3-smollm2").fit()["tpc_chain4_held_back"]
    assert trained >= 1.4

"""Language models learn from text, sparse ones switch and say so, and what they deliver speaks."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tenfold
from language.lm_runs import train
from tenfold.cli import main
from tenfold.engine.task import Shard
from tenfold.errors import CheckpointError
from tenfold.language.models.language_model import LanguageModel, set_mode
from tenfold.language.pretraining.pretrain import PretrainTask, Windows
from tenfold.language.recipes import lm_relu2_24
from tenfold.nn.ffn import ExpertFFN


@pytest.fixture(scope="module")
def shakespeare(test_data: Path) -> Path:
    return test_data / "text/tinyshakespeare.txt.gz"


@pytest.fixture(scope="module")
def run(shakespeare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lm") / "run"
    steps = ("--trainer.steps", 120, "--trainer.log-every", 1, "--optim.lr", 6e-3, "--sparsity.max-dropped", 1)
    assert train("lm-relu2-24", out, shakespeare, *steps) == 0
    return out


@pytest.fixture
def lm(run: Path) -> LanguageModel:
    model = tenfold.load(run)
    assert isinstance(model, LanguageModel)
    return model


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_sparse_run_learns_more_than_byte_frequencies(run: Path) -> None:
    last = rows(run)[-1]
    assert last["nats_per_byte"] < last["floor"] - 0.1
    assert 0.3 < last["blocks.1.ffn.zeros"] < 1
    assert 0 < last["blocks.1.ffn.dropped"] < 0.2


def test_gathered_decoding_writes_the_same_text(lm: LanguageModel) -> None:
    prompt = "First Citizen:\n"
    dense = lm.generate(prompt, max_new_tokens=200)
    assert len(dense) == 200
    set_mode(lm, "gather")
    assert lm.generate(prompt, max_new_tokens=200) == dense


def test_any_number_of_ranks_sees_one_stream() -> None:
    recipe = lm_relu2_24()
    tokens = np.arange(5000) % 251
    whole = next(Windows(recipe, tokens, None, Shard()))
    parts = [next(Windows(recipe, tokens, None, Shard(rank, 4))) for rank in range(4)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)
    later = Windows(recipe, tokens, None, Shard())
    later.load_state_dict({"position": 0})
    assert torch.equal(next(later), whole)
    assert not torch.equal(next(later), whole)


def test_the_text_command_scores_a_run_beside_its_floor(
    run: Path, test_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    val = test_data / "text/wikitext2_valid.txt.gz"
    assert main(["eval", "text", str(run), "--val", str(val), "--limit", "4096", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["nats per byte"] < 5
    assert found["bits per byte"] == pytest.approx(found["nats per byte"] / 0.693147, rel=1e-4)
    assert any("baseline" in name for name in found)


def test_grammar_and_questions_are_scored_beside_their_floors(
    run: Path, test_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["eval", "blimp", str(run), "--val", str(test_data / "text_qa/blimp.parquet"), "--limit", "60", "--json"])
        == 0
    )
    grammar = json.loads(capsys.readouterr().out)
    assert 0 <= grammar["accuracy, %"] <= 100
    assert grammar["accuracy, %, baseline (chance)"] == 50
    assert (
        main(
            ["eval", "nq", str(run), "--val", str(test_data / "text_qa/nq_open.dev.jsonl.gz"), "--limit", "3", "--json"]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["questions"] == "3"


@pytest.mark.parametrize("recipe", ["lm-swiglu-dense", "lm-relu2-dense", "lm-moe-top1"])
def test_the_other_kinds_train_and_load(recipe: str, shakespeare: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(recipe, out, shakespeare, "--trainer.steps", 3) == 0
    model = tenfold.load(out)
    assert isinstance(model, LanguageModel)
    assert len(model.generate("To be", max_new_tokens=5).encode()) >= 1
    if recipe == "lm-moe-top1":
        assert isinstance(model.get_submodule("blocks.0.ffn"), ExpertFFN)
        assert rows(out)[0]["balance"] >= 1 - 1e-5  # its smallest value, where all experts are used alike


def test_a_bpe_run_carries_its_vocabulary_in_its_weights(shakespeare: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(gzip.decompress(shakespeare.read_bytes())[:300_000])
    out = tmp_path / "run"
    assert train("lm-relu2-dense", out, text, "--trainer.steps", 3, "--tokens", "bpe", "--model.vocabulary", 400) == 0
    model = tenfold.load(out / "final.safetensors")
    assert isinstance(model, LanguageModel)
    assert model.vocabulary.size == 400
    assert model.vocabulary.decode(model.vocabulary.encode("To be, or not — to bé")) == "To be, or not — to bé"
    assert rows(out)[-1]["nats_per_byte"] < rows(out)[-1]["floor"] + 1.5


def test_a_run_goes_on_with_its_own_text_alone(shakespeare: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(gzip.decompress(shakespeare.read_bytes())[:200_000])
    out = tmp_path / "run"
    assert train("lm-relu2-dense", out, text, "--trainer.steps", 2) == 0
    text.write_text(text.read_text().replace("Citizen", "Denizen"))
    assert main(["train", "--resume", str(out)]) == CheckpointError.exit_code


WRONG = {
    "sparsity on SwiGLU": (["--model.sparsity", "2:4", "--model.activation", "swiglu"], 2, "relu2"),
    "experts that exceed their number": (["--model.experts", 2, "--model.experts-top-k", 3], 2, "experts_top_k"),
    "top_k > side": (
        ["--model.memory-layers", 0, "--model.memory-side", 8, "--model.memory-top-k", 9],
        2,
        "1 to memory_side",
    ),
    "odd key_dim": (["--model.memory-layers", 0, "--model.memory-key-dim", 7], 2, "even"),
    "a layer beyond the depth": (["--model.memory-layers", 7], 2, "from 0 to 1"),
    "a width that does not split": (["--model.memory-layers", 0, "--memory.group-size", 3], 2, "1, 2, 4, 8"),
    "a wrong name": (["--sparsity.warmup-step", 3], 2, "warmup-steps"),
    "a share above 1": (["--sparsity.warmup-steps", 1.5], 2, "share"),
    "windows longer than the text": (["--length", 10_000_000, "--val-tokens", 10_000_000], 2, "length"),
    "a vocabulary too small": (["--model.vocabulary", 100], 2, "256"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_configuration_is_one_message_and_nothing_is_written(
    case: str, shakespeare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, code, said = WRONG[case]
    assert train("lm-relu2-dense", tmp_path / "run", shakespeare, *words) == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_text_that_is_none_is_a_data_error(test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\0\0\0")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"text " * 1000)[:40])
    (tmp_path / "short.txt").write_text("one line\n")
    (tmp_path / "folder").mkdir()
    for name in ("empty.txt", "picture.txt", "cut.txt.gz", "short.txt", "folder", "absent.txt"):
        assert train("lm-relu2-dense", tmp_path / "run", tmp_path / name) == 3, name
        assert "Traceback" not in capsys.readouterr().err
    assert train("lm-relu2-dense", tmp_path / "run", test_data / "text_qa/blimp.parquet") == 3
    assert "no column text; its columns are uid, term, good, bad, pair" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_standard_library_is_text_enough() -> None:
    task = PretrainTask(lm_relu2_24())
    assert len(task.train) > 2_000_000
    assert 0.01 < len(task.held_back) / len(task.train) < 0.2
